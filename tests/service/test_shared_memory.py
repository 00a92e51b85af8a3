"""Regions: what can be registered, what a request can reach of them, and what their maker can do to us meanwhile."""

from __future__ import annotations

import gc
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decode import decode_request
from service.encode import encode_response
from service.errors import MalformedRequest, NotFound, NotSupported, RequestError, RequestMismatch
from service.protocol import InferenceResponse, OutputTensor
from service.shared_memory import RegionStatus, RequestAreas, SharedMemory

CONTENT = bytes(range(64))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "object").write_bytes(CONTENT)
    return tmp_path


@pytest.fixture
def regions(folder: Path) -> SharedMemory:
    """With the region "r": bytes 16 to 48 of the object."""
    regions = SharedMemory(is_enabled=True, max_request_bytes=1000, folder=folder)
    regions.register("r", "/object", 16, 32)
    return regions


def open_files(folder: Path) -> list[str]:
    """What this process has open in `folder`, by name."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists the folder
            found.append(str(descriptor.readlink()))
    return sorted(name.removeprefix(f"{folder}/") for name in found if name.startswith(f"{folder}/"))


# --- registering --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["object", "/object"])
def test_region_is_a_part_of_an_object(key: str, folder: Path) -> None:
    regions = SharedMemory(is_enabled=True, max_request_bytes=1000, folder=folder)
    regions.register("a", key, 0, 64)
    regions.register("b", key, 63, 1)
    assert regions.status() == (RegionStatus("a", key, 0, 64), RegionStatus("b", key, 63, 1))
    assert regions.status("b") == (RegionStatus("b", key, 63, 1),)
    assert bytes(regions.area("b", 0, 1, "x").read()) == b"\x3f"


@pytest.mark.parametrize(
    ("name", "key", "offset", "size_bytes", "told"),
    [
        pytest.param("r", "/object", 0, 1, "shared memory region 'r' already in manager; unregister it", id="twice"),
        pytest.param("n", "/none", 0, 1, "Unable to open shared memory region: '/none': No such file", id="none"),
        pytest.param("n", "/object", 0, 65, "key '/object' has 64 bytes, offset and byte_size reach to 65", id="long"),
        pytest.param("n", "/object", 64, 1, "has 64 bytes, offset and byte_size reach to 65", id="behind-the-end"),
        pytest.param("n", "/object", 2**62, 2**62, f"reach to {2**63}", id="huge"),
        pytest.param("n", "/object", 2**64, 1, "expected at least 0 and at least 1, up to 2**62", id="beyond"),
        pytest.param("n", "/object", 10**4000, 1, "(4001 characters)", id="endless"),
        pytest.param("n", "/object", -1, 1, "offset is -1 and byte_size is 1", id="negative-offset"),
        pytest.param("n", "/object", 0, 0, "offset is 0 and byte_size is 0", id="nothing"),
        pytest.param("n", "/object", 0, -1, "offset is 0 and byte_size is -1", id="negative-size"),
        pytest.param("n", "/folder", 0, 1, "Unable to open shared memory region: '/folder'", id="folder"),
        pytest.param("n", "/link", 0, 1, "Unable to open shared memory region: '/link'", id="link"),
        pytest.param("n", "/pipe", 0, 1, "key '/pipe' is not a shared memory object", id="pipe"),
        pytest.param("n", "/sem.x", 0, 1, "key '/sem.x' is a semaphore's, not a shared memory", id="semaphore"),
        *(
            pytest.param("n", key, 0, 1, "is not the name of a shared memory object", id=f"key-{key[:9]!r}")
            for key in ("", "/", ".", "..", "/..", "//object", "folder/object", "/../object", "o\0", "n" * 256)
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_registered_is_told_and_leaves_nothing_open(
    name: str, key: str, offset: int, size_bytes: int, told: str, regions: SharedMemory, folder: Path
) -> None:
    (folder / "folder").mkdir()
    (folder / "folder" / "object").write_bytes(CONTENT)
    (folder / "link").symlink_to(folder / "object")
    os.mkfifo(folder / "pipe")
    with pytest.raises(RequestMismatch) as refusal:
        regions.register(name, key, offset, size_bytes)
    assert told in str(refusal.value)
    assert len(str(refusal.value)) < 300
    assert regions.status() == (RegionStatus("r", "/object", 16, 32),)
    assert open_files(folder) == ["object"]


def test_switched_off_takes_no_region_and_names_the_flag(folder: Path) -> None:
    regions = SharedMemory(is_enabled=False, max_request_bytes=1000, folder=folder)
    with pytest.raises(NotSupported, match="--system-shared-memory"):
        regions.register("r", "/object", 0, 1)
    with pytest.raises(
        MalformedRequest, match=r"Unable to find shared memory region: 'r'; start .*--system-shared-mem"
    ):
        regions.area("r", 0, 1, "input 'x'")
    regions.unregister()
    regions.unregister("r")
    assert regions.status() == ()


def test_sockets_are_left_some_of_the_files_that_a_process_may_open(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (8, 8))
    regions = SharedMemory(is_enabled=True, max_request_bytes=1000, folder=folder)
    regions.register("a", "/object", 0, 1)
    regions.register("b", "/object", 0, 1)
    with pytest.raises(RequestMismatch, match="'c': there are 2 already, and no more are taken"):
        regions.register("c", "/object", 0, 1)


def test_region_is_closed_when_it_is_unregistered(regions: SharedMemory, folder: Path) -> None:
    regions.register("s", "object", 0, 64)
    regions.unregister("s")
    regions.unregister("s")  # no error, as in Triton
    assert [region.name for region in regions.status()] == ["r"]
    assert open_files(folder) == ["object"]
    regions.unregister()
    assert regions.status() == ()
    assert open_files(folder) == []
    with pytest.raises(NotFound, match="Unable to find system shared memory region: 'r'; registered are none"):
        regions.status("r")


def test_region_that_a_request_uses_lasts_until_the_request_is_done(regions: SharedMemory, folder: Path) -> None:
    area = regions.area("r", 4, 4, "output 'y'")
    regions.unregister()
    (folder / "object").unlink()  # nor does it matter that its maker has gone
    area.write(b"abc")
    assert bytes(area.read()) == b"abc\x17"
    assert open_files(folder) == ["object (deleted)"]
    del area
    gc.collect()
    assert open_files(folder) == []


def test_another_object_under_the_same_key_is_not_the_region(regions: SharedMemory, folder: Path) -> None:
    (folder / "object").unlink()
    (folder / "object").write_bytes(b"\xff" * 64)
    assert bytes(regions.area("r", 0, 2, "x").read()) == b"\x10\x11"


# --- areas --------------------------------------------------------------------------------------------------------


@given(offset=st.integers(-3, 40) | st.integers(), size_bytes=st.integers(-3, 40) | st.integers())
def test_area_is_inside_its_region_or_refused(
    offset: int, size_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "object").write_bytes(CONTENT)
    regions = SharedMemory(is_enabled=True, max_request_bytes=1000, folder=folder)
    regions.register("r", "/object", 16, 32)
    if offset >= 0 and size_bytes >= 0 and offset + size_bytes <= 32:
        area = regions.area("r", offset, size_bytes, "x")
        assert bytes(area.read()) == CONTENT[16 + offset : 16 + offset + size_bytes]
        area.write(b"\xee" * size_bytes)
        kept = CONTENT[: 16 + offset] + b"\xee" * size_bytes + CONTENT[16 + offset + size_bytes :]
        assert (folder / "object").read_bytes() == kept
    else:
        with pytest.raises(MalformedRequest, match=r"x: Invalid offset \+ byte size .* 'r' has 32 bytes"):
            regions.area("r", offset, size_bytes, "x")


def test_region_that_is_not_there_is_told_with_those_that_are(regions: SharedMemory) -> None:
    for number in range(11):
        regions.register(f"s{number}", "/object", 0, 1)
    with pytest.raises(MalformedRequest) as refusal:
        regions.area("t", 0, 1, "input 'x'")
    names = "'r', " + ", ".join(f"'s{number}'" for number in range(9))
    assert str(refusal.value) == (
        f"input 'x': Unable to find shared memory region: 't'; registered are {names} and 2 more"
    )


@pytest.mark.parametrize("left_bytes", [0, 16, 20])
def test_object_that_has_shrunk_is_an_answer_and_not_the_end_of_the_process(
    left_bytes: int, regions: SharedMemory, folder: Path
) -> None:
    """A mapping would have killed us: SIGBUS."""
    area = regions.area("r", 0, 8, "x")
    os.truncate(folder / "object", left_bytes)
    for use in (area.read, lambda: area.write(b"12345678")):
        with pytest.raises(RequestError) as refusal:
            use()
        assert str(refusal.value).startswith("x: shared memory region 'r' cannot be ")
        assert str(refusal.value).endswith("its object has become shorter since it was registered")
    assert (folder / "object").stat().st_size == left_bytes


def test_what_does_not_fit_its_area_is_not_written(regions: SharedMemory, folder: Path) -> None:
    with pytest.raises(RequestMismatch) as refusal:
        regions.area("r", 0, 3, "output 'y'").write(memoryview(np.zeros((2, 1), np.float16)))
    assert str(refusal.value) == (
        "output 'y': the shared memory size specified with the request is 3 bytes, "
        "should be at least 4 bytes to hold the results"
    )
    assert (folder / "object").read_bytes() == CONTENT


def test_system_calls_that_do_less_than_asked_are_repeated(
    regions: SharedMemory, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux moves at most 2 GiB in one."""
    preadv, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: preadv(file, [parts[0][:3]], at))
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:3], at))
    area = regions.area("r", 1, 10, "x")
    assert bytes(area.read()) == CONTENT[17:27]
    area.write(b"0123456789")
    assert (folder / "object").read_bytes() == CONTENT[:17] + b"0123456789" + CONTENT[27:]


# --- requests -----------------------------------------------------------------------------------------------------


def body(datatype: str, shape: list[int], *outputs: dict[str, Any], **parameters: Any) -> bytes:
    tensor = {"name": "x", "datatype": datatype, "shape": shape, "parameters": parameters}
    return json.dumps({"inputs": [tensor], "outputs": list(outputs)}).encode()


PLACE = {"shared_memory_region": "r", "shared_memory_byte_size": 4}


def test_input_is_what_the_area_held_when_the_request_was_read(regions: SharedMemory, folder: Path) -> None:
    """Its maker may change it while the model runs: what was checked is what runs."""
    request = decode_request(body("UINT8", [2, 2], **PLACE, shared_memory_offset=1), None, regions)
    (folder / "object").write_bytes(b"\xff" * 64)
    np.testing.assert_array_equal(request.inputs[0].data, np.array([[17, 18], [19, 20]], np.uint8))


def test_strings_and_truths_are_checked_as_from_anywhere(regions: SharedMemory, folder: Path) -> None:
    (folder / "object").write_bytes(b"\x01\x00\x02\x01".rjust(20, b"\0") + b"\x02\0\0\0hi\0\0".ljust(44, b"\0"))
    strings = body("BYTES", [1], shared_memory_region="r", shared_memory_byte_size=6, shared_memory_offset=4)
    assert decode_request(strings, None, regions).inputs[0].data.tolist() == [b"hi"]
    with pytest.raises(MalformedRequest, match="element 2 is byte 2; a BOOL is 0 or 1"):
        decode_request(body("BOOL", [4], **PLACE), None, regions)
    longer = body("BYTES", [1], shared_memory_region="r", shared_memory_byte_size=5, shared_memory_offset=4)
    with pytest.raises(MalformedRequest, match="element 0 ends at byte 6, but there are 5 bytes"):
        decode_request(longer, None, regions)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        pytest.param(body("FP32", [1], shared_memory_region="r"),
                     "input 'x' has parameter 'shared_memory_region', but no 'shared_memory_byte_size'", id="no-size"),
        pytest.param(body("FP32", [1], shared_memory_byte_size=4),
                     "input 'x' has parameter 'shared_memory_byte_size', but no 'shared_memory_region'", id="no-name"),
        pytest.param(body("FP32", [1], shared_memory_offset=4), "but no 'shared_memory_region'", id="offset-only"),
        pytest.param(body("FP32", [1], **PLACE, binary_data_size=4),
                     "input 'x' is in shared memory, and has data in the request too", id="binary-too"),
        pytest.param(body("FP32", [1], **PLACE).replace(b'"shape"', b'"data":[1],"shape"'),
                     "input 'x' is in shared memory, and has data in the request too", id="data-too"),
        pytest.param(body("FP32", [2], **PLACE),
                     "shared_memory_byte_size is 4, but shape [2] of FP32 takes 8 bytes", id="other-size"),
        pytest.param(body("FP32", [1], shared_memory_region="r", shared_memory_byte_size=4.0),
                     "parameter 'shared_memory_byte_size' is a number, expected an integer", id="type"),
        pytest.param(body("FP32", [1], **PLACE, shared_memory_offset=-1),
                     "parameter 'shared_memory_offset' is -1, expected 0 or more", id="negative"),
        pytest.param(body("FP32", [1], **PLACE, shared_memory_offset=29), "'r' has 32 bytes", id="over-the-end"),
        pytest.param(body("FP32", [1], {"name": "y", "parameters": {**PLACE, "shared_memory_offset": 29}}, **PLACE),
                     "output 'y': Invalid offset + byte size for shared memory region", id="output-over-the-end"),
        pytest.param(body("FP32", [1], {"name": "y", "parameters": {**PLACE, "classification": 1}}, **PLACE),
                     "output 'y': a classification cannot go to shared memory", id="classification"),
    ],
)  # fmt: skip
def test_contradiction_is_told(sent: bytes, told: str, regions: SharedMemory) -> None:
    with pytest.raises(MalformedRequest) as refusal:
        decode_request(sent, None, regions)
    assert told in str(refusal.value)


def test_same_request_means_what_is_registered_now(regions: SharedMemory, folder: Path) -> None:
    """However well its bytes are remembered."""
    asked = {"name": "y", "parameters": PLACE}
    sent = body("UINT8", [4], asked, **PLACE)
    for _ in range(3):
        assert decode_request(sent, None, regions).inputs[0].data.tolist() == [16, 17, 18, 19]
    regions.unregister("r")
    regions.register("r", "/object", 40, 4)
    for _ in range(3):
        request = decode_request(sent, None, regions)
        assert request.inputs[0].data.tolist() == [40, 41, 42, 43]
        assert request.outputs[0].area is not None
        request.outputs[0].area.write(bytes([40, 41, 42, 43]))
    assert (folder / "object").read_bytes() == CONTENT
    regions.unregister("r")
    del request
    for _ in range(3):
        with pytest.raises(MalformedRequest, match="Unable to find shared memory region: 'r'"):
            decode_request(sent, None, regions)
    gc.collect()
    assert open_files(folder) == []


def test_same_request_with_binary_data_means_what_is_registered_now(regions: SharedMemory, folder: Path) -> None:
    head = body("UINT8", [4], {"name": "y", "parameters": PLACE}, binary_data_size=4)
    for offset in (16, 40):
        for _ in range(3):
            (output,) = decode_request(head + b"abcd", len(head), regions).outputs
            assert output.area is not None
            output.area.write(b"abcd")
        assert (folder / "object").read_bytes()[offset : offset + 5] == b"abcd" + CONTENT[offset + 4 : offset + 5]
        regions.unregister("r")
        regions.register("r", "/object", 40, 4)


def test_nothing_is_shared_where_nothing_can_be(regions: SharedMemory) -> None:
    with pytest.raises(MalformedRequest, match="input 'x': shared memory cannot be used here"):
        decode_request(body("FP32", [1], **PLACE), None)


def test_request_copies_no_more_than_a_body_may_bring(folder: Path) -> None:
    """An object full of holes costs its maker nothing."""
    with (folder / "object").open("wb") as holes:
        holes.truncate(2**40)
    regions = SharedMemory(is_enabled=True, max_request_bytes=10, folder=folder)
    regions.register("r", "object", 0, 2**40)
    areas = RequestAreas(regions)
    area = regions.area("r", 0, 6, "x")
    areas.read(area, "x")
    with pytest.raises(MalformedRequest, match="is 6, but of the 10 bytes that one request may bring 4 are left"):
        areas.read(area, "x")
    assert RequestAreas(regions).read(area, "x") == bytes(6)


@pytest.mark.parametrize(
    ("datatype", "array", "written"),
    [
        pytest.param("FP32", np.array([[1.0], [-2.0]], np.float32), b"\0\0\x80\x3f\0\0\0\xc0", id="fp32"),
        pytest.param("FP16", np.array([[1.0], [-2.0]], np.float16), b"\0\x3c\0\xc0", id="fp16"),
        pytest.param("INT64", np.array([[[1, 2], [3, 4]]], np.int64)[:, :, 1], b"\2" + b"\0" * 7 + b"\4" + b"\0" * 7,
                     id="strided"),
        pytest.param("BOOL", np.array([True, False]), b"\1\0", id="bool"),
        pytest.param("BYTES", np.array([b"a", b""], object), b"\1\0\0\0a\0\0\0\0", id="bytes"),
        pytest.param("FP32", np.zeros((2, 0), np.float32), b"", id="nothing"),
    ],
)  # fmt: skip
def test_output_is_written_to_its_area_and_the_answer_only_describes_it(
    datatype: str, array: np.ndarray[Any, Any], written: bytes, regions: SharedMemory, folder: Path
) -> None:
    """As in Triton: neither `data` nor `parameters`."""
    asked = {"name": "y", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 20}}
    (output,) = decode_request(body("FP32", [1], asked, **PLACE), None, regions).outputs
    tensor = OutputTensor("y", datatype, array, binary=bool(output.binary), area=output.area)
    answer = encode_response(InferenceResponse("m", "1", (tensor,)))
    assert json.loads(answer.body) == {
        "model_name": "m",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": datatype, "shape": list(array.shape)}],
    }
    assert (answer.content_type, answer.header_bytes) == ("application/json", None)
    assert (folder / "object").read_bytes() == CONTENT[:16] + written + CONTENT[16 + len(written) :]


def test_other_outputs_of_the_request_come_as_usual(regions: SharedMemory) -> None:
    two = np.array([1.0], np.float32)
    shared = OutputTensor("s", "FP32", two, binary=True, area=regions.area("r", 0, 4, "output 's'"))
    outputs = (shared, OutputTensor("b", "FP32", two, binary=True), OutputTensor("j", "FP32", two), shared)
    answer = encode_response(InferenceResponse("m", "1", outputs))
    assert json.loads(answer.body[: answer.header_bytes])["outputs"] == [
        {"name": "s", "datatype": "FP32", "shape": [1]},
        {"name": "b", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
        {"name": "j", "datatype": "FP32", "shape": [1], "data": [1.0]},
        {"name": "s", "datatype": "FP32", "shape": [1]},
    ]
    assert answer.body[answer.header_bytes :] == two.tobytes()
