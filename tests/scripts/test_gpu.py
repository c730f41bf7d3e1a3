"""gpu.py on a CPU with tiny sizes: its checks find what is wrong, and none ends the others."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import gpu
from _gpu import checks, commands, models, modules
from _gpu.checks import NotHere, Options, read_results, run_check

SMALL = Options("cpu", small=True)


def run(*arguments: str) -> subprocess.CompletedProcess:
    """Run gpu.py."""
    command = [sys.executable, str(ROOT / "scripts" / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_check_passes_fails_or_is_not_here(capsys):
    def missing() -> None:
        raise NotHere("no GPU")

    assert run_check("part", "figures", lambda: {"ms": 1.0})
    assert not run_check("part", "wrong", lambda: checks.require(False, "boxes differ\nby much"))
    assert run_check("part", "missing", missing)
    results = read_results("a line of something else\n" + capsys.readouterr().out)
    assert [result["state"] for result in results] == ["passed", "failed", "not here"]
    assert results[0]["figures"] == {"ms": 1.0} and results[1]["why"] == "AssertionError: boxes differ"


def test_a_process_that_dies_is_named_and_the_others_go_on(tmp_path):
    """The part `models` ends without a result where its model does not exist."""
    jobs = [gpu.Job("models", "rtdetr-absent"), gpu.Job("modules", "FLA")]
    end = gpu.time.monotonic() + 120
    (absent,), found = ([gpu.run_job(job, SMALL, end)] for job in jobs)
    assert [result["state"] for result in absent] == ["failed"] and "rtdetr-absent" in absent[0]["check"]
    assert "process ended with 1" in absent[0]["why"]
    assert {result["state"] for result in found[0]} == {"passed"} and len(found[0]) == 2
    (late,) = gpu.run_job(jobs[0], SMALL, gpu.time.monotonic())
    assert late["state"] == "failed" and "no time left" in late["why"]


def test_a_model_from_the_command_line_to_the_file(tmp_path):
    out = tmp_path / "results" / "gpu.json"
    done = run("--device", "cpu", "--small", "--only", "models rtdetr-tiny-FLA", "--out", str(out))
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    states = {result["check"].partition(": ")[2]: result["state"] for result in found["results"]}
    not_here = {key for key, state in states.items() if state == "not here"}
    assert not_here == {"training step, fp16", "CUDA graph"} and set(states.values()) == {"passed", "not here"}
    assert (found["passed"], found["failed"], found["not here"]) == (len(states) - 2, 0, 2)
    assert found["environment"]["torch"] == torch.__version__
    assert "| rtdetr-tiny-FLA: as on the CPU" in done.stdout and "7 passed, 0 failed, 2 not here" in done.stdout


def test_what_is_wrong_on_a_device_is_found():
    """A device whose model differs from the CPU's, or loses a gradient."""
    found = models.ModelChecks("rtdetr-tiny", SMALL)
    assert found.compare_with_cpu()["maps"] == 0
    right = found.on_device

    def wrong() -> torch.nn.Module:
        model = right()
        with torch.no_grad():
            model.model[-1].dec_score_head[-1].bias += 1
            model.model[5].m[0].conv1.conv.weight *= 1.1
        return model

    found.on_device = wrong
    for check in (found.compare_with_cpu, found.compare_fused, found.compare_channels_last):
        with pytest.raises(AssertionError, match="detections match|maps differ"):
            check()
    with pytest.raises(AssertionError, match="the loss differs"):
        found.train(None)
    found.on_device = lambda: right().half().float()
    model = right()
    model.model[3].requires_grad_(False)
    found.train(None, model)  # frozen is not lost
    model.model[3].requires_grad_(True)
    model.model[3].register_forward_hook(lambda m, inputs, out: out.detach())
    with pytest.raises(AssertionError, match="no gradient"):
        found.train(None, model)


@pytest.mark.parametrize(
    "size", [(14, 15), *(pytest.param(size, marks=pytest.mark.nightly) for size in ((14, 14), (30, 23)))]
)
def test_flex_attention_computes_what_routed_attention_does(size):
    torch.manual_seed(0)
    regions = modules.Regions(*size, (size[0] // 7, size[1] // 7), torch.device("cpu"))
    qkv = torch.randn(2 * regions.R, regions.L, 3 * 16)
    chosen, mask = regions.route(*qkv.chunk(3, dim=-1)[:2], 4)
    ours = modules.RoutedAttention.apply(qkv, chosen, mask, 2, 0.25)[0]
    flex = modules.attend_by_flex_attention(qkv, chosen, regions, 2, 0.25)
    real = regions.real.repeat(2, 1)
    assert torch.allclose(ours[real], flex[real], atol=1e-5)
    others = modules.attend_by_flex_attention(qkv, chosen.roll(1, 0), regions, 2, 0.25)
    assert not torch.allclose(ours[real], others[real], atol=1e-2)


@pytest.mark.nightly
def test_commands_and_two_processes(capsys):
    commands.check_commands("", SMALL)
    results = read_results(capsys.readouterr().out)
    assert len(results) == 7 and all(result["state"] != "failed" for result in results), results


@pytest.mark.nightly
def test_all_parts_by_one_command(tmp_path):
    done = run("--device", "cpu", "--small", "--minutes", "30", "--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--only", "nothing", "--device", "cpu", "--small"], "there are commands, models rtdetr-tiny"),
        (["--minutes", "0", "--device", "cpu"], "--minutes must be positive"),
        (["--device", "cuda"], "--device cpu --small tries the script on a CPU"),
    ],
)
def test_wrong_arguments(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        code = gpu.main()
    except SystemExit as e:
        code = e.code
    assert code == 2 and says in capsys.readouterr().err


def test_wheels(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--wheels"])
    assert gpu.main() == 0 and capsys.readouterr().out.split() == list(gpu.WHEELS)
