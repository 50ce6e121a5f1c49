# SPDX-License-Identifier: Apache-2.0
"""Seeded mutants of recordings, read in a process of bounded memory.

    python -m tests.helpers.mutants FORMAT COUNT SEED FOLDER

writes a recording, damages it COUNT times and reads it: each mutant must give an error sentence or
the right answer, within limits of memory and time. Prints the counts as JSON; anything else is an
error.

    python -m tests.helpers.mutants read PATH

reads a bag or a folder of frames in bounded memory and prints the error sentences.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.helpers import REPO
from tests.helpers.mutation import put

MEMORY = 512 << 20  # bytes in addition to what the libraries take
SECONDS = 5.0  # for one mutant
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def mutants(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` damaged forms of a file: bits, bytes, cuts, gaps, repeats, large numbers."""
    rng = np.random.default_rng([seed, len(content)])
    for _ in range(count):
        data = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            if not data:
                break
            # Two thirds of the damage are near the ends, where headers and indices are.
            end = len(data)
            near = (int(rng.integers(end)), int(rng.integers(min(end, 600))),
                    max(0, end - 1 - int(rng.integers(min(end, 600)))))  # fmt: skip
            at = near[int(rng.integers(3))]
            size = int(rng.integers(1, 64))
            match int(rng.integers(8)):
                case 0:
                    data[at] ^= 1 << int(rng.integers(8))
                case 1:
                    data[at] = INTERESTING[int(rng.integers(len(INTERESTING)))]
                case 2:
                    data[at : at + size] = rng.bytes(size)
                case 3:
                    del data[at:]
                case 4:
                    del data[at : at + size]
                case 5:
                    data[at:at] = data[at : at + size]
                case 6:
                    data[at : at + size] = bytes(size)
                case 7:
                    width = int(rng.choice([2, 4, 8]))
                    value = int(rng.choice([2**15, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1]))
                    order = "little" if rng.random() < 0.5 else "big"
                    part = (value % 2 ** (8 * width)).to_bytes(width, order)
                    data[at : at + width] = part
        yield bytes(data)


def texts(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield damaged forms of a JSON file: half as of any file, half with a value replaced."""
    rng = np.random.default_rng([seed, 7])
    values = ["1e999", "-1e999", "9" * 400, "NaN", "true", "null", '"x"', "[" * 100_000, "{}", "[]",
              "96.9", "1e-320", "[[[[1]]]]", '"' + "y" * 5000 + '"', "\\u0000", "-0", "[1e400]",
              "9" * 5000]  # fmt: skip
    yield from mutants(content, count // 2, seed)
    document = json.loads(content)
    for _ in range(count - count // 2):
        key = list(document)[int(rng.integers(len(document)))]
        mark = "@@"
        text = json.dumps({**document, key: mark})
        yield text.replace(f'"{mark}"', values[int(rng.integers(len(values)))]).encode()


def frame_reader(folder: Path, file: str) -> Callable[[], None]:
    from depth_node.recordings.frames import read_frame

    want = read_frame(folder)

    def read() -> None:
        frame = read_frame(folder)
        assert frame.image.shape == want.image.shape and frame.image.dtype == np.uint8
        if file != "rgb.jpg":  # a JPEG has no checksum
            assert np.array_equal(frame.image, want.image)
        if file in ("depth.png", "depth.npz"):
            assert frame.depth is not None and want.depth is not None
            assert np.array_equal(frame.depth, want.depth, equal_nan=True)
        elif file == "prediction_test.npz":
            got, wanted = frame.prediction("test"), want.prediction("test")
            assert got.kind == wanted.kind
            assert np.array_equal(got.values, wanted.values)
        elif file == "lidar.npy":
            assert frame.points_lidar is not None and frame.points_lidar.shape[1] == 3
        assert frame.camera.fx > 0

    return read


def bag_reader(path: Path, checked: bool) -> Callable[[], None]:
    from depth_node.ros.bags import Bag
    from tests.helpers.recordings import CAMERA, scene

    image = scene()[0]

    def read() -> None:
        with Bag(path) as bag:
            for frame in bag.frames():
                assert frame.image.shape == (CAMERA.height, CAMERA.width, 3)
                assert not checked or np.array_equal(frame.image, image)
                assert frame.points is not None and frame.points.shape[1] == 3
            for sentence in bag.left_out.sentences():
                assert sentence.isprintable() and len(sentence) < 1200

    return read


def image_reader(path: Path) -> Callable[[], None]:
    from depth_node.image_files import ALL_FORMATS, decode, look_through

    def pixels() -> np.ndarray:
        return decode(look_through(path.read_bytes(), ALL_FORMATS))

    want = pixels()

    def read() -> None:
        image = pixels()
        assert image.dtype == want.dtype and image.ndim == 3
        if path.suffix == ".png":  # the other formats have no checksums
            assert np.array_equal(image, want)

    return read


IMAGE_FORMS: dict[str, tuple[type, list[int]]] = {  # name -> type of the pixels, OpenCV's options
    "image.jpg": (np.uint8, []),
    "image.progressive.jpg": (np.uint8, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    "image.restarts.jpg": (np.uint8, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
    "image.png": (np.uint8, []),
    "image.deep.png": (np.uint16, []),
    "image.bmp": (np.uint8, []),
    "image.webp": (np.uint8, []),
    "image.tiff": (np.uint8, []),
}


def recording(form: str, folder: Path) -> tuple[Path, Callable[[], None]]:
    """Write a recording that holds a file of a form; return the file and the recording's reader."""
    from tests.helpers.recordings import T_CAMERA_LIDAR, BagWriter, scene, write_frame

    if form.startswith(("mcap", "db3")):
        kind, _, codec = form.partition("-")
        writer = BagWriter(folder / "bag", mcap=kind == "mcap", **_compression(kind, codec))
        writer.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        for number in range(3):
            writer.info(1.0 + 0.1 * number)
            writer.cloud(1.0 + 0.1 * number)
            writer.image(1.0 + 0.1 * number)
        writer.close()
        (path,) = [p for p in (folder / "bag").iterdir() if p.name != "metadata.yaml"]
        return path, bag_reader(folder / "bag", checked=False)
    if form in IMAGE_FORMS:
        kind, settings = IMAGE_FORMS[form]
        pixels = scene()[0].astype(kind) * kind(1 if kind is np.uint8 else 16)
        assert cv2.imwrite(str(folder / form), pixels, settings)
        return folder / form, image_reader(folder / form)
    frame = write_frame(folder / "source" / "frame")
    if form == "rgb.jpg":
        (frame / "rgb.png").unlink()
        cv2.imwrite(str(frame / form), scene()[0][..., ::-1])
    if form == "depth.png":
        depth = np.load(frame / "depth.npz")["depth"]
        (frame / "depth.npz").unlink()
        cv2.imwrite(str(frame / form), (1000 * depth).astype(np.uint16))
    if form.startswith("segmentation"):
        cv2.imwrite(str(frame / form), np.ones(scene()[1].shape, np.uint16))
    return frame / form, frame_reader(frame, form)


def _compression(kind: str, codec: str) -> dict[str, object]:
    from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

    if not codec:
        return {}
    mode = {"file": "FILE", "message": "MESSAGE", "zstd": "STORAGE"}[codec]
    return {"mode": CompressionMode[mode], "fmt": CompressionFormat.ZSTD}


def bound_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


def read_bounded(path: Path) -> dict[str, object]:
    """Read a bag or a folder of frame folders; return the number of frames, the error sentences and
    the processor time.
    """
    from depth_node.recordings.files import FrameError
    from depth_node.recordings.frames import is_bag, read_frame

    frames, sentences = 0, []
    if is_bag(path):
        from depth_node.ros import bags
        from depth_node.ros.bags import reader

        reader._type_store()
        bound_memory()
        try:
            with bags.Bag(path) as bag:
                try:
                    for _ in bag.frames():
                        frames += 1
                finally:
                    sentences += bag.left_out.sentences()
        except FrameError as error:
            sentences.append(str(error))
    else:
        bound_memory()
        for folder in sorted(path.iterdir()):
            try:
                read_frame(folder)
                frames += 1
            except FrameError as error:
                sentences.append(str(error))
    return {"frames": frames, "sentences": sentences, "cpu_s": time.process_time()}


def in_a_child(*arguments: object, timeout_s: float = 120) -> dict[str, Any]:
    """Run this module in a process of its own and return what it prints."""
    command = [sys.executable, "-m", "tests.helpers.mutants", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr[-3000:]
    content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return content


def main(form: str, count: int, seed: int, folder: Path) -> dict[str, object]:
    from depth_node.image_files import ImageError
    from depth_node.recordings.files import FrameError

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path, read = recording(form, folder)
    whole = path.read_bytes()
    read()
    warnings.simplefilter("error")
    bound_memory()
    answers = sentences = 0
    slowest = 0.0
    make = texts if form.endswith(".json") else mutants
    for number, content in enumerate(make(whole, count, seed)):
        put(path, content)
        start = time.process_time()
        try:
            read()
            answers += 1
        except FrameError as error:
            sentences += 1
            text = str(error)
            assert text.isprintable() and 20 < len(text) <= 1000, text
        except ImageError as error:  # its text is part of a sentence, so it may be short
            sentences += 1
            text = str(error)
            assert text.isprintable() and len(text) <= 1000, text
        except BaseException:
            kept = folder / f"mutant_{number}"
            kept.write_bytes(content)
            print(f"mutant {number} of {form}, kept in {kept}", file=sys.stderr)
            raise
        taken = time.process_time() - start
        assert taken < SECONDS, f"mutant {number} of {form} took {taken:.1f} s"
        slowest = max(slowest, taken)
    # Not ru_maxrss, because on Linux a process inherits its parent's peak.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return {"answers": answers, "sentences": sentences, "slowest_s": slowest, "peak_bytes": peak}


if __name__ == "__main__":
    if sys.argv[1] == "read":
        print(json.dumps(read_bounded(Path(sys.argv[2]))))
    else:
        form_, count_, seed_, folder_ = sys.argv[1:]
        print(json.dumps(main(form_, int(count_), int(seed_), Path(folder_))))
