from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arbiter_sidecar.adapters import amd_tools
from arbiter_sidecar.types import GIB, Attribution, Process

_HOLDER = Process(50, 1000)
_ANSWER = '{"card0": {"VRAM Total Memory (B)":"17163091968","VRAM Total Used Memory (B)":"1024"}}'

_MODULE = """
from enum import IntEnum

class AmdSmiException(Exception): ...

class AmdSmiMemoryType(IntEnum):
    VRAM = 0

def amdsmi_init():
    if {broken}: raise AmdSmiException("no driver")
def amdsmi_shut_down(): ...
def amdsmi_get_processor_handles(): return ["first", "second"]
def amdsmi_get_gpu_device_uuid(card): return "uuid-" + card
def amdsmi_get_gpu_memory_total(card, kind): return 16 * 1024**3
def amdsmi_get_gpu_memory_usage(card, kind): return {{"first": 1024, "second": 2048}}[card]
"""


@pytest.fixture(autouse=True)
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which programs and modules are looked for; nothing else is on the path of programs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("amdsmi", None)


def _program(folder: Path, body: str) -> None:
    path = folder / "rocm-smi"
    path.write_text(f"#!{sys.executable} -SE\nimport sys, time\n{body}\n")
    path.chmod(0o755)


def _module(folder: Path, text: str) -> None:
    (folder / "amdsmi.py").write_text(text)
    importlib.invalidate_caches()


def test_program_is_asked_when_there_is_no_module(tools: Path) -> None:
    _program(tools, f"print({_ANSWER!r})")
    probes, notes = amd_tools.find(None)
    assert notes == ["amdsmi: the module is not installed"]
    (probe,) = probes
    assert probe.facts.device_id == "card0"
    assert probe.facts.total_bytes == 17163091968
    assert probe.facts.attribution is Attribution.DEVICE_ONLY
    sample = probe.sample([_HOLDER])
    assert sample.used_bytes == 1024
    assert sample.held_bytes == {_HOLDER: None}
    probe.close()


def test_program_is_given_the_questions_it_knows(tools: Path) -> None:
    _program(tools, f"assert sys.argv[1:] == ['--showmeminfo', 'vram', '--showuniqueid', '--json']; print({_ANSWER!r})")
    assert len(amd_tools.ask_rocm_smi()) == 1


def test_answer_larger_than_a_pipe_is_read_whole(tools: Path) -> None:
    cards = {f"card{i}": {"VRAM Total Memory (B)": "1024", "text": "x" * 1000} for i in range(300)}
    (tools / "answer.json").write_text(json.dumps(cards))
    _program(tools, f"sys.stderr.write('w' * 200000); print(open({str(tools / 'answer.json')!r}).read())")
    assert len(amd_tools.ask_rocm_smi()) == 300


def test_program_that_hangs_is_given_up(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amd_tools, "TOOL_TIMEOUT_S", 0.2)
    _program(tools, "time.sleep(600)")
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        amd_tools.ask_rocm_smi()


def test_program_that_fails_is_an_error(tools: Path) -> None:
    _program(tools, "sys.exit(3)")
    with pytest.raises(OSError, match="exit code 3"):
        amd_tools.ask_rocm_smi()


def test_card_is_lost_when_the_program_lists_it_no_more(tools: Path) -> None:
    _program(tools, f"print({_ANSWER!r})")
    (probe,), _ = amd_tools.find(None)
    _program(tools, "print('{}')")
    assert probe.sample([]).lost


def test_parts_that_are_no_card_are_left_out() -> None:
    text = (
        "WARNING: something first\n"
        '{"card0": {"VRAM Total Memory (B)": "N/A"}, "system": {"Driver version": "6"}, "card1": "text", '
        '"card2": {"VRAM Total Memory (B)": "17163091968", "VRAM Total Used Memory (B)": "N/A", '
        '"Unique ID": "0xa1b2c3d4e5f60718"}, "card3": {"VRAM Total Memory (B)": "5", "Unique ID": "N/A"}}'
    )
    assert amd_tools.parse_rocm_smi(text) == [
        amd_tools.Card("card2", "GPU-a1b2c3d4e5f60718", 17163091968, None),
        amd_tools.Card("card3", "", 5, None),
    ]


@pytest.mark.parametrize("text", ["", "no json", "[1]", '{"card0": '])
def test_answer_that_is_no_object_is_an_error(text: str) -> None:
    with pytest.raises(OSError, match="JSON"):
        amd_tools.parse_rocm_smi(text)


def test_module_is_preferred_when_it_works(tools: Path) -> None:
    _module(tools, _MODULE.format(broken=False))
    probes, notes = amd_tools.find(8 * GIB)
    assert notes == []
    assert [probe.facts.device_id for probe in probes] == ["uuid-first", "uuid-second"]
    assert probes[0].facts.capacity_bytes == 8 * GIB - 8 * GIB // 10
    assert [probe.sample([]).used_bytes for probe in probes] == [1024, 2048]


def test_module_that_finds_no_driver_is_passed_over(tools: Path) -> None:
    _module(tools, _MODULE.format(broken=True))
    assert amd_tools.find(None) == ([], ["amdsmi: failed: no driver", "rocm-smi: the program is not installed"])


def test_module_without_rocm_is_passed_over_quietly(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _module(tools, "print('Unable to find libamd_smi.so')\nraise KeyError('libamd_smi.so')")
    probes, notes = amd_tools.find(None)
    assert probes == []
    assert notes[0] == "amdsmi: the module does not load: KeyError('libamd_smi.so')"
    assert capsys.readouterr().out == ""


def test_tool_that_lists_no_card_is_said(tools: Path) -> None:
    _program(tools, "print('{}')")
    assert amd_tools.find(None) == ([], ["amdsmi: the module is not installed", "rocm-smi: lists no card"])
