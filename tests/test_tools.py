"""Tools that people put around a model: torch.export, and the pages of solutions."""

import subprocess
import sys
import types

import pytest
import torch
from conftest import TINY, mark_nightly

from ultralytics import RTDETR, solutions


@pytest.mark.parametrize("name", mark_nightly(TINY, {"rtdetr-tiny-Biformer", "rtdetr-tiny-EMO"}))
def test_torch_export_of_a_model_that_never_ran(name):
    """At a fixed size; the model is usable after it, at this size and at others."""
    model = RTDETR(f"{name}.yaml").model.eval()
    x = torch.rand(1, 3, 96, 128)
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        expected = model(x)[0]
        assert torch.allclose(program.module()(x)[0], expected, atol=1e-5)
        assert torch.isfinite(model(torch.rand(1, 3, 64, 64))[0]).all()


def test_the_page_of_a_solution_fetches_nothing(monkeypatch):
    """Streamlit is replaced by what notes all that it is given."""
    given = []

    class Page:
        def __getattr__(self, name):
            return self

        def __call__(self, *args, **kwargs):
            given.extend([*args, *kwargs.values()])
            return Page()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __float__(self):
            return 0.5

        def __iter__(self):
            return iter((self, self))

    page = types.SimpleNamespace(st=Page(), conf=0.25, iou=0.45, source="image")
    solutions.Inference.web_ui(page)
    solutions.Inference.sidebar(page)
    assert given and not [x for x in given if "http" in str(x)]


def test_an_import_does_not_load_torchs_compiler():
    """It takes longer than all the rest."""
    code = (
        "import sys, ultralytics.models.rtdetr.train\n"
        "from ultralytics import RTDETR\n"
        "assert not {'torch._dynamo', 'torch._inductor', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
