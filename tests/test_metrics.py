"""Metrics against medpy's values on real masks, hand values, and a brute-force definition."""

import json
import math
import pathlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssl_jax import metrics
from ssl_jax.metrics import surface

DATA = pathlib.Path(__file__).parent / "data"
ORACLES = json.loads((DATA / "metrics_medpy.json").read_text())


def oracle_masks(case):
  packed = np.load(DATA / "metrics_masks.npz")
  shape = packed[f"shape_{case}"]
  return tuple(np.unpackbits(packed[f"{name}_{case}"])[: shape.prod()].reshape(shape) for name in ("pred", "label"))


def cubes(shift=1):
  """Two 3³ cubes in an 8³ volume, the second `shift` voxels further along the first axis."""
  pred, label = np.zeros((2, 8, 8, 8), bool)
  pred[1:4, 2:5, 2:5] = True
  label[1 + shift : 4 + shift, 2:5, 2:5] = True
  return pred, label


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: str(oracle["case"]))
@pytest.mark.parametrize("tree_limit", [0, 10**9], ids=["transform", "tree"])
def test_equals_medpy_on_real_masks(monkeypatch, oracle, tree_limit):
  monkeypatch.setattr(surface, "_TREE_LIMIT", tree_limit)
  pred, label = oracle_masks(oracle["case"])
  start = time.perf_counter()
  in_voxels = metrics.case_metrics(pred, label)
  print(f"\ncase {oracle['case']}: {time.perf_counter() - start:.3f} s")
  in_mm = metrics.case_metrics(pred, label, spacing=oracle["spacing"])
  for name in ("dice", "jaccard"):
    assert in_voxels[name] == in_mm[name] == getattr(metrics, name)(pred, label) == pytest.approx(oracle[name], rel=1e-6)
  for name in ("hd95", "asd"):
    assert in_voxels[name] == getattr(metrics, name)(pred, label) == pytest.approx(oracle[f"{name}_voxel"], rel=1e-6)
    assert in_mm[name] == getattr(metrics, name)(pred, label, spacing=oracle["spacing"]) == pytest.approx(oracle[f"{name}_mm"], rel=1e-6)
  assert metrics.assd(pred, label) == pytest.approx(oracle["assd_voxel"], rel=1e-6)
  assert metrics.assd(pred, label, spacing=oracle["spacing"]) == pytest.approx(oracle["assd_mm"], rel=1e-6)
  assert in_voxels["empty"] is False


def test_shifted_cubes_by_hand():
  # Each cube has 27 voxels, 26 on the surface. 18 overlap; of a cube's surface, 9 lie in the face outside the other cube, at distance 1,
  # and one, in the middle of the face inside the other cube, coincides with that one's centre: its nearest surface voxel is 1 away.
  pred, label = cubes()
  found = metrics.case_metrics(pred, label)
  assert found["dice"] == pytest.approx(36 / 54)
  assert found["jaccard"] == pytest.approx(18 / 36)
  assert found["hd95"] == 1
  assert found["asd"] == pytest.approx(10 / 26)
  assert metrics.assd(pred, label) == pytest.approx(10 / 26)


def test_spacing_scales_along_its_axis():
  # 3 mm along the shift: the 9 voxels of the outer face stay nearest to voxels 3 mm away; the middle one goes sideways, 1 mm.
  pred, label = cubes()
  assert metrics.asd(pred, label, spacing=(3, 1, 1)) == pytest.approx((9 * 3 + 1) / 26)
  assert metrics.hd95(pred, label, spacing=(3, 1, 1)) == 3
  assert metrics.asd(pred, label, spacing=np.array([2.0, 2.0, 2.0])) == pytest.approx(2 * 10 / 26)


def test_single_voxels_in_opposite_corners():
  pred, label = np.zeros((2, 4, 5, 6), np.uint8)
  pred[0, 0, 0] = label[3, 4, 5] = 1
  found = metrics.case_metrics(pred, label, spacing=(1, 1, 2))
  assert found["dice"] == found["jaccard"] == 0
  assert found["hd95"] == found["asd"] == pytest.approx(math.sqrt(9 + 16 + 100))


def test_directed_and_pooled_distances_by_hand():
  # Prediction: one voxel on the label; label: that voxel and one 4 away.
  pred, label = np.zeros((2, 9, 3), bool)
  pred[1, 1] = label[1, 1] = label[5, 1] = True
  assert metrics.asd(pred, label) == 0
  assert metrics.asd(label, pred) == 2
  assert metrics.assd(pred, label) == pytest.approx(4 / 3)
  assert metrics.hd95(pred, label) == pytest.approx(np.percentile([0, 0, 4], 95)) == pytest.approx(3.6)


def test_mask_touching_the_volume_has_a_surface_there():
  full = np.ones((3, 3, 3), bool)
  dot = np.zeros_like(full)
  dot[1, 1, 1] = True
  to_label, to_pred = metrics.surface_distances(full, dot)
  assert len(to_label) == 26 and len(to_pred) == 1
  assert to_pred[0] == 1


NAN = math.nan


@pytest.mark.parametrize(
  ("has_pred", "has_label", "policy", "overlap", "distance"),
  [
    (False, True, "published", 0, 0),
    (False, True, "worst", 0, 13),
    (False, True, "exclude", 0, NAN),
    (True, False, "published", 0, 13),
    (True, False, "worst", 0, 13),
    (True, False, "exclude", 0, NAN),
    (False, False, "published", 0, 0),
    (False, False, "worst", 1, 0),
    (False, False, "exclude", NAN, NAN),
  ],
)
def test_empty_policies(has_pred, has_label, policy, overlap, distance):
  pred, label = np.zeros((2, 3, 4, 3), bool)
  pred[1, 1, 1], label[1, 1, 1] = has_pred, has_label
  found = metrics.case_metrics(pred, label, spacing=(1, 1, 4), empty=policy)  # 3 x 4 x 12: diagonal 13
  assert found == pytest.approx({"dice": overlap, "jaccard": overlap, "hd95": distance, "asd": distance, "empty": True}, nan_ok=True)


def test_overlap_of_two_empty_masks_is_one():
  empty = np.zeros((3, 3), bool)
  assert metrics.dice(empty, empty) == metrics.jaccard(empty, empty) == 1


@pytest.mark.parametrize("metric", [metrics.dice, metrics.jaccard, metrics.hd95, metrics.asd, metrics.assd, metrics.case_metrics])
@pytest.mark.parametrize(
  ("pred", "label", "message"),
  [
    (np.ones((3, 3)), np.ones((3, 4)), "shape"),
    (np.full((3, 3), 2), np.ones((3, 3)), "prediction is not a binary mask"),
    (np.ones((3, 3)), np.full((3, 3), 0.5), "label is not a binary mask"),
    (np.ones(3), np.ones(3), "2D or 3D"),
    (np.ones((0, 3)), np.ones((0, 3)), "non-empty"),
  ],
)
def test_wrong_masks_are_named(metric, pred, label, message):
  with pytest.raises(ValueError, match=message):
    metric(pred, label)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, -1, 1), (1, 1, math.nan)])
@pytest.mark.parametrize("metric", [metrics.hd95, metrics.asd, metrics.assd, metrics.case_metrics])
def test_wrong_spacing_is_named(metric, spacing):
  with pytest.raises(ValueError, match="3 positive lengths"):
    metric(*cubes(), spacing=spacing)


def test_wrong_policy_and_empty_distance_are_named():
  with pytest.raises(ValueError, match="published, worst, exclude"):
    metrics.case_metrics(*cubes(), empty="zero")
  with pytest.raises(ValueError, match="foreground in both"):
    metrics.hd95(np.zeros((3, 3)), np.ones((3, 3)))


def brute_surface(mask):
  """Foreground voxels with a face neighbour in the background or outside the array."""
  return [
    index
    for index in np.argwhere(mask)
    if any(
      not (0 <= neighbour[axis] < mask.shape[axis]) or not mask[tuple(neighbour)]
      for axis in range(mask.ndim)
      for neighbour in (index + np.eye(mask.ndim, dtype=int)[axis], index - np.eye(mask.ndim, dtype=int)[axis])
    )
  ]


def brute_distances(source, target, spacing):
  return [min(math.dist(a * spacing, b * spacing) for b in brute_surface(target)) for a in brute_surface(source)]


@pytest.mark.parametrize("tree_limit", [0, 10**9], ids=["transform", "tree"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_equals_brute_force_on_tiny_masks(tree_limit, data):
  shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=3, max_side=4))
  pred, label = (data.draw(hnp.arrays(bool, shape)) for _ in range(2))
  spacing = np.array(data.draw(st.lists(st.floats(0.25, 4), min_size=len(shape), max_size=len(shape))))
  if not (pred.any() and label.any()):
    return
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(surface, "_TREE_LIMIT", tree_limit)
    found = metrics.case_metrics(pred, label, spacing=spacing)
    symmetric = metrics.assd(pred, label, spacing=spacing)
  forward, backward = brute_distances(pred, label, spacing), brute_distances(label, pred, spacing)
  assert found["asd"] == pytest.approx(np.mean(forward))
  assert found["hd95"] == pytest.approx(np.percentile(forward + backward, 95))
  assert symmetric == pytest.approx(np.mean(forward + backward))
  assert found["dice"] == pytest.approx(2 * (pred & label).sum() / (pred.sum() + label.sum()))
  assert found["jaccard"] == pytest.approx((pred & label).sum() / (pred | label).sum())


def test_bootstrap_has_the_standard_error_of_the_mean():
  values = np.random.default_rng(0).normal(80, 10, size=200)
  mean, std = metrics.bootstrap(values, num_resamples=4000, seed=1)
  assert mean == pytest.approx(values.mean(), abs=0.1)
  assert std == pytest.approx(values.std() / math.sqrt(200), rel=0.05)
  assert metrics.bootstrap(values, seed=3) == metrics.bootstrap(values, seed=3) != metrics.bootstrap(values, seed=4)
  assert metrics.bootstrap([5.0, 5.0]) == (5, 0)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0]]])
def test_bootstrap_rejects_what_has_no_mean(values):
  with pytest.raises(ValueError, match="bootstrap needs"):
    metrics.bootstrap(values)


def test_bootstrap_rejects_no_resamples():
  with pytest.raises(ValueError, match="num_resamples"):
    metrics.bootstrap([1.0], num_resamples=0)


def test_summary_by_hand():
  cases = [
    {"case": "a", "dice": 0.8, "jaccard": 0.6, "hd95": 4.0, "asd": 1.0, "empty": False},
    {"case": "b", "dice": 0.6, "jaccard": 0.4, "hd95": 0.0, "asd": 0.0, "empty": True},
  ]
  summary = metrics.summarise(cases, num_resamples=10, seed=2)
  assert summary["num_cases"] == 2 and summary["num_empty"] == 1
  assert summary["dice"]["mean"] == pytest.approx(0.7) and summary["dice"]["std"] == pytest.approx(0.1)
  assert (summary["hd95"]["bootstrap_mean"], summary["hd95"]["bootstrap_std"]) == metrics.bootstrap([4, 0], num_resamples=10, seed=2)
  json.dumps(summary)


def test_summary_leaves_out_what_is_not_defined():
  rows = [{"dice": d, "jaccard": d, "hd95": h, "asd": NAN, "empty": math.isnan(h)} for d, h in ((0.5, 2.0), (0.0, NAN), (0.7, 4.0))]
  summary = metrics.summarise(rows, num_resamples=10)
  assert (summary["num_cases"], summary["num_empty"]) == (3, 1)
  assert summary["dice"]["mean"] == pytest.approx(0.4) and summary["hd95"]["mean"] == 3
  assert 2 <= summary["hd95"]["interval"][0] < 3 < summary["hd95"]["interval"][1] <= 4
  assert all(math.isnan(value) for value in (summary["asd"]["mean"], *summary["asd"]["interval"]))
  with pytest.raises(ValueError, match="at least one case"):
    metrics.summarise([])


def test_interval_covers_the_mean_as_often_as_it_says():
  rng = np.random.default_rng(0)
  samples = rng.normal(3, 2, size=(300, 60))
  ends = np.array([metrics.interval(sample, level=0.9, num_resamples=400) for sample in samples])
  assert 0.83 < np.mean((ends[:, 0] < 3) & (ends[:, 1] > 3)) < 0.95
  assert metrics.interval([5.0, 5.0]) == (5, 5)
  for level in (0, 1, 95):
    with pytest.raises(ValueError, match="level"):
      metrics.interval([1.0, 2.0], level=level)


def test_paired_comparison_by_hand():
  # Five differences 1, 2, 3, 4, 5, all in favour of a: of 2^5 sign patterns 2 are as extreme, p = 2/32.
  found = metrics.compare_paired([2, 4, 6, 8, 10, NAN], [1, 2, 3, 4, 5, 7])
  assert (found.num_cases, found.num_higher, found.num_lower) == (5, 5, 0)
  assert (found.mean_a, found.mean_b, found.difference) == (6, 3, 3)
  assert found.p_value == pytest.approx(1 / 16)
  assert 1 < found.interval[0] < 3 < found.interval[1] < 5
  mirrored = metrics.compare_paired([1, 2, 3, 4, 5], [2, 4, 6, 8, 10])
  assert mirrored.difference == -3 and mirrored.p_value == found.p_value and mirrored.num_lower == 5
  # -1 has rank 1, +2 rank 2: every sign pattern is as extreme as this one or more.
  assert metrics.compare_paired([0, 2], [1, 0]).p_value == 1
  same = metrics.compare_paired([1, 2], [1, 2])
  assert (same.p_value, same.difference, same.interval, same.num_higher) == (1, 0, (0, 0), 0)


@pytest.mark.parametrize(("a", "b", "message"), [([1, 2], [1], "one value per case"), ([1, NAN], [1, 2], "at least two"), ([], [], "two")])
def test_paired_comparison_needs_pairs(a, b, message):
  with pytest.raises(ValueError, match=message):
    metrics.compare_paired(a, b)


def test_metrics_of_one_class():
  assert metrics.of_class([{"case": "a", "dice": 1.0, "LV/dice": 0.5, "LV/empty": False, "RV/dice": 0.1}], "LV") == [
    {"case": "a", "dice": 0.5, "empty": False}
  ]
