"""A stage's folder: what it was made of, and that it is read only as it was written."""

import subprocess
import sys

import pytest

from palora.common.errors import InputError
from palora.common.folders import alone, check_unchanged, folder_hash, new_folder, read_marker, same_inputs, seal


def inputs(model="a hash", **settings):
    return {"model": model, "settings": {"all": settings["all"], "stated": settings["stated"]}}


@pytest.mark.parametrize(
    ("now", "same"),
    [
        (inputs(all={"r": 16}, stated={}), True),
        (inputs(all={"r": 32}, stated={}), True),  # another default in a later version
        (inputs(all={"r": 16, "new": 1}, stated={}), True),  # a setting that is new since then
        (inputs(all={"r": 16, "new": 1}, stated={"r": 16}), True),  # the recipe of the run, which states everything
        (inputs(all={"r": 8}, stated={"r": 8}), False),
        (inputs(model="another", all={"r": 16}, stated={}), False),
    ],
)
def test_what_makes_a_stage_be_done_again(now, same):
    assert same_inputs(inputs(all={"r": 16}, stated={}), now) is same


def test_a_folder_without_inputs_is_made_again():
    assert not same_inputs(None, inputs(all={}, stated={})) and not same_inputs("a hash of 0.4", {})


def test_what_is_written_is_what_is_read(tmp_path):
    out = tmp_path / "out"
    with new_folder(out, "marker.json") as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "weights").write_bytes(b"abc")
        (staging / "README.md").write_text("prose")
        seal(staging, "marker.json", {"kind": "test"})
    record = read_marker(out, "marker.json", "kind")
    assert set(record["files"]) == {"inner/weights", "README.md"}
    before = folder_hash(out, "marker.json")
    (out / "README.md").write_text("somebody's own words")
    check_unchanged(out, record)
    assert folder_hash(out, "marker.json") == before
    (out / "inner" / "weights").write_bytes(b"abd")
    with pytest.raises(InputError, match="weights has changed since it was written"):
        check_unchanged(out, record)
    (out / "inner" / "weights").unlink()
    with pytest.raises(InputError, match="weights is gone"):
        check_unchanged(out, record, "inner/weights")


def test_a_folder_is_written_into_by_one_process(tmp_path):
    """… until that one ends, however it does; and by the same one as often as it likes."""
    code = """
import sys, time
from palora.common.folders import alone
with alone(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match=rf"out: process {other.pid} on .* is at work there"),
            alone(tmp_path / "out"),
        ):
            pass
        with pytest.raises(InputError, match="is at work there"), new_folder(tmp_path / "out", "marker.json"):
            pass
        with alone(tmp_path / "another"):
            pass
        other.kill()
    with new_folder(tmp_path / "out", "marker.json") as staging, alone(tmp_path / "out"):
        (staging / "marker.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
