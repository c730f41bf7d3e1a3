"""`scripts/reproduce.py --release`: what is compared, what it says, and the published figures on 8.3.50."""

import copy
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import reproduce
from _reproduce.layer_summaries import AsPublished, summarize
from _upstream.pin import UpstreamError
from ultralytics.nn.AddModules.Biformer import BiLevelRoutingAttention_nchw

SCRIPT = ROOT / "scripts" / "reproduce.py"
NAMES = list(reproduce.PUBLISHED)
uv = pytest.mark.skipif(not (os.environ.get("UV") or shutil.which("uv")), reason="uv is not installed")


# What is compared -----------------------------------------------------------------------------------------------------
def unequal(published, ours) -> list:
    return [(a, b) for a, b in reproduce.pair_lines(published, ours) if a != b]


@pytest.mark.parametrize("name", NAMES)
def test_any_other_character_or_line_is_seen(name):
    lines = reproduce.published_lines(name)
    assert unequal(lines, lines) == []
    for i, line in enumerate(lines):
        for j in {0, len(line) // 2, len(line) - 1} if line else ():
            changed = f"{line[:j]}{'?' if line[j] != '?' else '!'}{line[j + 1 :]}"
            assert unequal(lines, [*lines[:i], changed, *lines[i + 1 :]]) == [(line, changed)]
        assert unequal(lines, [*lines[:i], line + " ", *lines[i + 1 :]]) == [(line, line + " ")]
        assert unequal(lines, [*lines[:i], *lines[i + 1 :]]) == [(line, None)]
        assert unequal(lines, [*lines[:i], "one more", *lines[i:]]) == [(None, "one more")]
    assert unequal(lines, [*lines, "one more"]) == [(None, "one more")]
    assert len(unequal(lines, [])) == len(lines)


def test_a_difference_is_shown_with_both_sides(capsys):
    published = reproduce.published_lines("rtdetr-l-EMO")
    ours = [line.replace("64.6 GFLOPs", "64.7 GFLOPs") for line in published[:5] + published[6:]]
    found = reproduce.print_sides("rtdetr-l-EMO", published, ours)
    out = capsys.readouterr().out
    assert len(found) == 2 and "lines that differ: 2" in out
    assert f"  published  {published[5]!r}\n  ours       no such line\n" in out
    assert f"  published  {published[-2]!r}\n  ours       {ours[-2]!r}\n" in out
    assert out.count("  both  ") == len([line for line in published if line]) - 2
    assert [line.split() for line in out.splitlines()[-7:-1]] == [
        ["published", "ours"],
        ["rows", "20", "19"],
        ["layers", "1,023", "1,023"],
        ["parameters", "22,863,235", "22,863,235"],
        ["gradients", "22,863,235", "22,863,235"],
        ["GFLOPs", "64.6", "64.7"],
    ]


def run(monkeypatch, capsys, summaries: dict, release: str = "8.3.50"):
    """Run the command on summaries as given; returns its exit status and what it prints."""
    monkeypatch.setattr(reproduce, "summaries_on", lambda release, names: iter(summaries.items()))
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--release", release])
    with pytest.raises(SystemExit) as stop:
        reproduce.main()
    return stop.value.code, *capsys.readouterr()


def falsified(name: str) -> list[tuple[str, dict]]:
    """The published figures of a model with one of them changed, each by the name of what is changed."""
    found = []
    for key, step in {"layers": 1, "parameters": -1, "gradients": 1, "gflops": 0.1}.items():
        found.append((key, {**reproduce.PUBLISHED[name], key: reproduce.PUBLISHED[name][key] + step}))
    for i, value in enumerate((98, 99, 7, 1, "Conv", "[]")):
        other = copy.deepcopy(reproduce.PUBLISHED[name])
        other["rows"][1][i] = value
        found.append((f"column {i}", other))
    other = copy.deepcopy(reproduce.PUBLISHED[name])
    del other["rows"][-1]
    return [*found, ("rows", other)]


@pytest.mark.parametrize("name", NAMES)
def test_a_falsified_figure_fails(name, monkeypatch, capsys):
    summaries = {name: reproduce.published_lines(name) for name in NAMES}
    status, out, err = run(monkeypatch, capsys, summaries)
    assert status == 0 and err == "6 published models: every line and figure is as published\n"
    assert out.count("lines are equal") == 6
    for what, figures in falsified(name):
        with monkeypatch.context() as patch:
            patch.setattr(reproduce, "PUBLISHED", {**reproduce.PUBLISHED, name: figures})
            status, out, err = run(patch, capsys, summaries)
        assert status == 1, what
        assert out.count("lines are equal") == 5 and out.count("lines that differ: ") == 1, what
        assert err.startswith(f"{name}: line ") and err.endswith(f"6 published models: {name} differ\n"), what


def test_a_model_without_a_summary_fails(monkeypatch, capsys):
    summaries = {name: reproduce.published_lines(name) for name in NAMES[:-1]}
    status, _, _ = run(monkeypatch, capsys, summaries)
    assert status == f"reproduce.py: ultralytics 8.3.50 gave no summary of {NAMES[-1]}"


# As the tutorials built them ------------------------------------------------------------------------------------------
def seen_by_hooks(model) -> set[str]:
    """The convolutions of a model whose hooks run in a forward of its copy, as in a profiler."""
    model, seen = copy.deepcopy(model).eval(), set()
    for name, m in model.named_modules():
        if isinstance(m, torch.nn.Conv2d):
            m.register_forward_hook(lambda *_, name=name: seen.add(name))
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    return seen


def test_only_the_qkv_convolutions_pass_by_the_hooks():
    name = "rtdetr-tiny-Biformer"
    plain, lines = summarize(name)
    model, lines_as_published = summarize(name, AsPublished)
    attentions = [m for m, module in plain.named_modules() if isinstance(module, BiLevelRoutingAttention_nchw)]
    assert attentions and seen_by_hooks(model) < seen_by_hooks(plain)
    assert seen_by_hooks(plain) - seen_by_hooks(model) == {f"{m}.qkv_linear" for m in attentions}
    assert lines_as_published[:-2] == lines[:-2], "only the summary may differ"
    assert [m for m, _ in model.named_modules()] == [m for m, _ in plain.named_modules()]
    model.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(model).eval()(x)[0], plain.eval()(x)[0], rtol=1e-5, atol=1e-6)


# The environment ------------------------------------------------------------------------------------------------------
def test_the_tutorials_profiler_where_the_release_allows_it(capsys):
    needs = ["numpy>=1.23.0", "ultralytics-thop>=2.0.0"]
    assert reproduce.add_profiler(needs) == [*needs, "ultralytics-thop==2.0.13"]
    assert capsys.readouterr().out == ""
    needs = ["numpy>=1.23.0", "ultralytics-thop>=2.0.18"]
    assert reproduce.add_profiler(needs) == needs
    assert "ultralytics-thop>=2.0.18" in capsys.readouterr().out


@uv
@pytest.mark.parametrize(
    "end, message",
    [
        ("raise ValueError('no such thing')", "the models cannot be built there: ValueError: no such thing"),
        ("import os; os.write(2, b'a warning'); os.kill(os.getpid(), 9)", "building the models ended with status"),
    ],
)
def test_objects_come_as_they_are_printed_and_a_failure_is_one_line(end, message, tmp_path):
    begin = (
        "import pathlib, time; print('noise'); print('{\"a\": 1}', flush=True)\n"
        "while not pathlib.Path('seen').exists(): time.sleep(0.01)\n"
        "print('{\"b\": 2}', flush=True); "
    )
    found = reproduce.stream_json([], "-c", begin + end, cwd=tmp_path)
    assert next(found) == {"a": 1}
    (tmp_path / "seen").touch()
    assert next(found) == {"b": 2}
    with pytest.raises(UpstreamError, match=message) as error:
        next(found)
    assert "\n" not in str(error.value)


@uv
def test_an_environment_that_cannot_be_made_is_one_line(tmp_path):
    offline = {**os.environ, "UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path)}
    with pytest.raises(UpstreamError, match="uv could not make the environment: .*; connect to the network") as error:
        list(reproduce.stream_json(["ultralytics-thop==2.0.13"], "-c", "", env=offline))
    assert "\n" not in str(error.value)


# The command ----------------------------------------------------------------------------------------------------------
def command(*args: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the script in a Python in which torch and ultralytics cannot be imported."""
    code = (
        "import runpy, sys; sys.modules.update(torch=None, ultralytics=None); "
        f"sys.path.insert(0, {str(SCRIPT.parent)!r}); sys.argv[0] = {str(SCRIPT)!r}; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    words = [sys.executable, "-c", code, *args]
    return subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize(
    "release, environment, message",
    [
        ("", {}, "'' is not a release of ultralytics"),
        ("8.3", {}, "'8.3' is not a release of ultralytics"),
        ("../8.3.50", {}, "'../8.3.50' is not a release of ultralytics"),
        ("8.3.50", {"PATH": "", "UV": ""}, "uv was not found"),
        pytest.param("8.3.50", {"UV": "/no/such/uv"}, "/no/such/uv", marks=uv),
        pytest.param("8.3.999", {}, "8.3.999", marks=uv),
    ],
)
def test_bad_input_is_one_line(release, environment, message):
    done = command("--release", release, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{SCRIPT.name}: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


@uv
@pytest.mark.nightly
def test_published_figures_on_8_3_50(monkeypatch, capsys):
    """Every line of the six models comes out; and on what came out, each falsified figure is seen."""
    summaries = {}

    def recorded(release, names, real=reproduce.summaries_on):
        for name, lines in real(release, names):
            summaries[name] = lines
            yield name, lines

    monkeypatch.setattr(reproduce, "summaries_on", recorded)
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--release", "8.3.50"])
    with pytest.raises(SystemExit) as stop:
        reproduce.main()
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    assert "ultralytics 8.3.50" in out and "ultralytics-thop 2.0.13" in out
    assert list(summaries) == NAMES and out.count("lines are equal") == 6
    for name in NAMES:
        assert f"  both       {reproduce.published_lines(name)[-2]}\n" in out
        for what, figures in falsified(name):
            with monkeypatch.context() as patch:
                patch.setattr(reproduce, "PUBLISHED", {**reproduce.PUBLISHED, name: figures})
                assert run(patch, capsys, summaries)[0] == 1, what
