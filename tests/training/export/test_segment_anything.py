# SPDX-License-Identifier: Apache-2.0
"""Exports of promptable segmentation networks: the real architectures with small random weights,
against the code they come from.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs requirements-training.txt")
pytest.importorskip("onnxscript", reason="needs requirements-training.txt")
pytest.importorskip("onnxruntime")


def plain_nms(boxes: Any, scores: Any, limit: float) -> Any:
    """Greedy non-maximum suppression as in torchvision, written in torch."""
    order = torch.argsort(scores, descending=True, stable=True)
    selected: list[int] = []
    for index in order.tolist():
        low = torch.maximum(boxes[index, :2], boxes[selected, :2])
        high = torch.minimum(boxes[index, 2:], boxes[selected, 2:])
        common = (high - low).clamp(min=0).prod(dim=1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        if not (common / (area[index] + area[selected] - common) > limit).any():
            selected.append(index)
    return torch.tensor(selected, dtype=torch.int64)


def helped_torchvision() -> Any:
    """torchvision's wheels are built for CUDA: beside a torch for the CPU their operators do not
    load, and nothing that imports torchvision does. Then the one operator that is needed here
    stands in for them; it lives as long as what is returned.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        torch.ops.load_library(str(next(Path(spec.origin).parent.glob("_C*.so"))))
        return None
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", plain_nms, "CPU")
        boxes = importlib.import_module("torchvision.ops.boxes")
        boxes._assert_has_ops = lambda: None
        return library


TORCHVISION = helped_torchvision()  # before transformers, which imports it where it is there
transformers = pytest.importorskip("transformers", reason="needs requirements-training.txt")


from rich.console import Console

from depth_node.engine.manifest import Manifest, manifest_path
from depth_node.engine.preprocess import to_tensor
from depth_node.inference import ModelConfig, PromptedRegionModel, RegionModel, open_engine
from depth_node.regions.prompted_masks import PromptConfig, box_overlap, select
from depth_node.regions.settings import SegmentationConfig
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view
from training.export import segment_anything
from training.loop import TrainingError

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch, timm and others deprecate
SIZE, PER_SIDE, BATCH = 256, 4, 5  # 16 points in batches of 5: the last is filled up
DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def room(height: int, width: int) -> np.ndarray:
    scene = Scene.random(3)
    return scene.render(*random_view(scene, np.random.default_rng(3), width, height)).image


def shaken(model: Any, seed: int = 1) -> Any:
    """Random weights under which masks have sizes and depend on the image and on the point."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() >= 2:
                code = value.dim() == 2 and ("embed" in name or "token" in name)
                gain = 0.5 if "encoder" in name and "prompt" not in name else 1.6
                spread = 1.0 if code and "proj" not in name else gain / value[0].numel() ** 0.5
                value.normal_(0, spread, generator=generator)
        for head in model.mask_decoder.output_hypernetworks_mlps:
            last = head.proj_out if hasattr(head, "proj_out") else head.layers[-1]
            last.weight.mul_(8.0)
    return model.eval()


def sam() -> Any:
    return shaken(
        transformers.SamModel._from_config(
            transformers.SamConfig(
                vision_config={
                    "hidden_size": 32, "num_hidden_layers": 2, "image_size": SIZE,
                    "patch_size": 16, "window_size": 7, "global_attn_indexes": [1], "mlp_dim": 64,
                    "num_attention_heads": 2, "output_channels": 32, "num_pos_feats": 16,
                },
                prompt_encoder_config={
                    "hidden_size": 32, "image_size": SIZE, "patch_size": 16,
                    "image_embedding_size": SIZE // 16,
                },
                mask_decoder_config=DECODER,
            ),
            attn_implementation="eager",
        )
    )  # fmt: skip


def sam2() -> Any:
    return shaken(
        transformers.Sam2Model._from_config(
            transformers.Sam2Config(
                vision_config={
                    "backbone_config": {
                        "model_type": "sam2_hiera_det_model", "hidden_size": 16,
                        "image_size": [SIZE, SIZE], "blocks_per_stage": [1, 1, 2, 1],
                        "embed_dim_per_stage": [16, 32, 64, 128],
                        "num_attention_heads_per_stage": [1, 2, 4, 8],
                        "window_size_per_stage": [8, 4, 8, 4], "global_attention_blocks": [3],
                    },
                    "backbone_channel_list": [128, 64, 32, 16],
                    "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
                    "fpn_hidden_size": 32,
                },
                prompt_encoder_config={"hidden_size": 32, "image_size": SIZE, "patch_size": 16},
                mask_decoder_config=DECODER,
            ),
            attn_implementation="eager",
        )
    )  # fmt: skip


@functools.cache
def exported(kind: str, folder: Path) -> tuple[Any, Path, str]:
    """Return the network, the file of its encoder and the output of the command."""
    model = {"sam": sam, "sam2": sam2}[kind]()
    model.save_pretrained(folder / kind)
    parser = argparse.ArgumentParser()
    segment_anything.arguments(parser)
    out = folder / "out"
    args = parser.parse_args([str(folder / kind), "--out", str(out), "--batch", str(BATCH)])
    console = Console(record=True, width=300, file=io.StringIO())
    segment_anything.command(args, console)
    return model, out / f"{kind}.onnx", console.export_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("segmentation")


def opened(encoder: Path, **prompts: Any) -> PromptedRegionModel:
    """Return the settings without filters, except those that are given: all masks, best first."""
    limits = {"min_iou": 0.0, "min_stability": 0.0, "nms_iou": 1.0, **prompts}
    config = SegmentationConfig(prompts=PromptConfig(points_per_side=PER_SIDE, **limits))
    model = RegionModel.open(ModelConfig(str(encoder), threads=1), config)
    assert isinstance(model, PromptedRegionModel)
    return model


def overlaps(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the IoU (n,) of corresponding masks (n, H, W); 1 if both are empty."""
    assert ours.shape == theirs.shape
    common, either = ((op(ours, theirs)).sum(axis=(1, 2)) for op in (np.logical_and, np.logical_or))
    return np.where(either > 0, common / np.maximum(either, 1), 1.0)


# --- transformers


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_exported_halves_give_the_masks_of_transformers(kind: str, folder: Path) -> None:
    model, encoder, printed = exported(kind, folder)
    assert "region_model.path" in printed
    manifest = Manifest.load(manifest_path(encoder))
    decoder = encoder.with_name(manifest.decoder)
    assert Manifest.load(manifest_path(decoder)).inputs["points"] == (BATCH, 2)
    image = room(SIZE * 3 // 4 if kind == "sam" else SIZE, SIZE)
    rows, cols = image.shape[:2]
    with opened(encoder) as regions:
        ours = regions.masks(image)
        assert regions.predict(image).shape == (rows, cols)
    centres = (np.arange(PER_SIDE) + 0.5) / PER_SIDE
    points = np.stack(np.meshgrid(centres * cols, centres * rows), axis=-1).reshape(1, -1, 1, 2)
    with torch.no_grad():
        answer = model(
            pixel_values=torch.from_numpy(to_tensor(image, manifest.input)),
            input_points=torch.tensor(points, dtype=torch.float32),
        )
    maps, iou = answer.pred_masks[0].flatten(0, 1), answer.iou_scores[0].flatten()
    order = torch.argsort(-iou, stable=True)
    order = order[iou[order] > 0]
    large = torch.nn.functional.interpolate(maps[None], size=(SIZE, SIZE), mode="bilinear")[0]
    theirs = (large[order, :rows, :cols] > 0).numpy()
    assert len(ours) >= PER_SIDE**2
    assert overlaps(ours, theirs).min() > 0.99
    assert np.ptp(theirs.mean(axis=(1, 2))) > 0.02  # not all the same


def test_stability_and_boxes_are_those_of_the_masks(folder: Path) -> None:
    _, encoder, _ = exported("sam", folder)
    decoder = encoder.with_name("sam_decoder.onnx")
    shapes = Manifest.load(manifest_path(decoder)).inputs
    rng = np.random.default_rng(2)
    tensors = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    tensors["points"] = (rng.random((BATCH, 2)) * SIZE).astype(np.float32)
    tensors["extent"] = np.array([SIZE / 2, SIZE], np.float32)
    with open_engine(decoder, threads=1) as engine:
        outputs = engine.run_named(tensors)
    masks = outputs["masks"][:, :, : outputs["masks"].shape[2] // 2]  # what lies in the image
    strict, lax = ((masks > level).sum(axis=(2, 3)) for level in (1.0, -1.0))
    np.testing.assert_allclose(outputs["stability"], strict / np.maximum(lax, 1), rtol=1e-6)
    for index in np.ndindex(masks.shape[:2]):
        rows, cols = np.nonzero(masks[index] > 0)
        box = [cols.min(), rows.min(), cols.max(), rows.max()] if len(rows) else [0, 0, 0, 0]
        np.testing.assert_array_equal(outputs["boxes"][index], box)


def test_large_weights_get_a_file_of_their_own(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(segment_anything, "LARGEST_FILE", 10_000)
    part = torch.nn.Linear(64, 64)
    path = folder / "large.onnx"
    segment_anything._write(part, {"x": torch.ones(1, 64)}, ["y"], path)
    assert path.with_name("large.onnx.data").stat().st_size >= 64 * 64 * 4
    assert path.stat().st_size < 64 * 64 * 4


def test_what_cannot_be_exported_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"Linear is no promptable segmentation network: give"):
        segment_anything.encoder_and_decoder(torch.nn.Linear(2, 2))
    tiny = {"num_hidden_layers": 1, "hidden_size": 24, "mlp_dim": 8, "image_size": 32}
    sdpa = transformers.SamModel(
        transformers.SamConfig(vision_config={**tiny, "num_attention_heads": 2})
    )
    with pytest.raises(TrainingError, match="eager"):
        segment_anything.encoder_and_decoder(sdpa)
    with pytest.raises(TrainingError, match="batch is 0"):
        segment_anything.export(sdpa, tmp_path, "x", batch=0)
    with pytest.raises(TrainingError, match=r"cannot be loaded by transformers.*--kind"):
        segment_anything.load(str(tmp_path))
    transformers.DPTConfig().save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match=r"is a dpt: give a SAM"):
        segment_anything.load(str(tmp_path))


def test_a_graph_of_other_weights_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoder, _ = exported("sam", folder)

    def other(network: Any, given: Any, outputs: Any, path: Path) -> None:
        shutil.copy(encoder.with_name(path.name.replace("wrong", "sam")), path)

    monkeypatch.setattr(segment_anything, "_write", other)
    with pytest.raises(TrainingError, match=r"differ by .* was not written"):
        segment_anything.export(shaken(sam(), seed=2), tmp_path, "wrong", batch=BATCH)
    assert list(tmp_path.iterdir()) == []
    segment_anything.export(model, tmp_path, "wrong", batch=BATCH)  # with its own weights it is


def test_a_network_that_answers_nan_is_not_written(tmp_path: Path) -> None:
    """NaN in one output of the decoder is found even if the others are finite."""
    model = shaken(sam(), seed=2)
    torch.nn.init.constant_(model.mask_decoder.iou_prediction_head.proj_out.bias, float("nan"))
    with pytest.raises(TrainingError, match=r"differ by inf .* was not written"):
        segment_anything.export(model, tmp_path, "broken", batch=BATCH)
    assert list(tmp_path.iterdir()) == []


# --- the authors' packages


@pytest.fixture(scope="module")
def packages() -> dict[str, Any]:
    """Import segment_anything or mobile_sam as published; skip, naming what is missing."""
    modules = {}
    for name in ("torchvision", "segment_anything", "mobile_sam"):
        try:
            modules[name] = importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{error}: see docs/segmentation.md, requirements-segmentation.txt")
    return modules


def original(package: Any) -> tuple[Any, int]:
    """Make a small random Sam of the package; return it and the size of its image."""
    torch.manual_seed(0)
    parts = package.modeling
    if package.__name__ == "mobile_sam":  # its encoder is made for 1024 pixels and 256 channels
        size, width = 1024, 256
        encoder = parts.TinyViT(
            img_size=size, embed_dims=[16, 32, 160, 320], depths=[1, 1, 1, 1],
            num_heads=[1, 2, 5, 10], window_sizes=[7, 7, 14, 7], drop_path_rate=0.0,
        )  # fmt: skip
    else:
        size, width = SIZE, 32
        encoder = parts.ImageEncoderViT(
            img_size=size, embed_dim=32, depth=2, num_heads=2, out_chans=width, window_size=7,
            use_rel_pos=True, global_attn_indexes=(1,),
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        )  # fmt: skip
    side = (size // 16, size // 16)
    return shaken(
        parts.Sam(
            encoder,
            parts.PromptEncoder(width, side, (size, size), 16),
            parts.MaskDecoder(
                transformer_dim=width,
                transformer=parts.TwoWayTransformer(
                    depth=2, embedding_dim=width, num_heads=2, mlp_dim=64
                ),
                iou_head_hidden_dim=32,
            ),
        ),
        seed=2,
    ), size


def generated(package: Any, model: Any, image: np.ndarray, **options: float) -> np.ndarray:
    """Return the masks (n, H, W) of the package's automatic mask generator, best first."""
    generator = package.SamAutomaticMaskGenerator(
        model, points_per_side=PER_SIDE, points_per_batch=7, **options
    )
    ordered = sorted(generator.generate(image), key=lambda one: -one["predicted_iou"])
    return filled(np.stack([one["segmentation"] for one in ordered]))


def filled(masks: np.ndarray) -> np.ndarray:
    """Drop empty masks, because generators treat them differently."""
    return masks[masks.any(axis=(1, 2))]


@pytest.mark.parametrize("name", ["segment_anything", "mobile_sam"])
def test_masks_are_those_of_the_authors_mask_generator(
    name: str, packages: dict[str, Any], tmp_path: Path
) -> None:
    package = packages[name]
    model, size = original(package)
    done = segment_anything.export(model, tmp_path, name, batch=BATCH)
    image = room(size * 3 // 4, size)
    everything = {"pred_iou_thresh": 1e-6, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    theirs = generated(package, model, image, **everything)
    with opened(done.encoder, min_iou=1e-6) as regions:
        ours = filled(regions.masks(image))
    assert len(theirs) > 8
    assert overlaps(ours, theirs).min() > 0.99
    # Copies dropped.
    theirs = generated(package, model, image, **{**everything, "box_nms_thresh": 0.7})
    with opened(done.encoder, min_iou=1e-6, nms_iou=0.7) as regions:
        ours = filled(regions.masks(image))
    assert overlaps(ours, theirs).min() > 0.99


def test_boxes_are_suppressed_as_torchvision_does(packages: dict[str, Any]) -> None:
    from torchvision.ops.boxes import batched_nms

    rng = np.random.default_rng(4)
    low = rng.integers(0, 200, (400, 2))
    boxes = np.concatenate([low, low + rng.integers(8, 60, (400, 2))], axis=1).astype(np.float32)
    iou = rng.permutation(400).astype(np.float32) / 400
    config = PromptConfig(min_iou=0.0, min_stability=0.0, nms_iou=0.3)
    ours = select(iou, np.ones(400, np.float32), boxes, [], config)
    full = boxes + np.array([0, 0, 1, 1], np.float32)  # last column inside -> end of the box
    theirs = batched_nms(
        torch.from_numpy(full), torch.from_numpy(iou), torch.zeros(400), iou_threshold=0.3
    )
    expected = theirs.numpy()[iou[theirs.numpy()] > 0]
    np.testing.assert_array_equal(ours, expected)
    assert 20 < len(ours) < 400
    assert box_overlap(boxes).shape == (400, 400)
