"""Figures of runs: what they show, worked out by hand; and what the command line says about folders that lack it."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from ssl_jax.data.phantom import PhantomSource
from ssl_jax.report import canvas, curves, maps, scans
from ssl_jax.report.__main__ import main
from ssl_jax.types import InputError, PhantomConfig


def scan(label, prediction, spacing=(1.0, 1.0, 1.0), classes=("background", "atrium")):
  image = np.random.default_rng(0).random(np.shape(prediction)).astype(np.float32)
  return scans.Scan("case", image, label, {"run": prediction}, {}, spacing, classes)


def box(shape, *sides, value=1):
  array = np.zeros(shape, np.uint8)
  array[tuple(slice(*side) for side in sides)] = value
  return array


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_scans_turn_to_the_patients_left_front_and_head(order, signs):
  """Along every axis of the turned array, world coordinates run as promised: x falls (to the left), y and z rise."""
  spacing = (1.0, 2.0, 5.0)
  affine = np.eye(4)
  affine[:3, :3] = 0
  for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
    affine[world, axis] = sign * spacing[axis]
  index = np.stack(np.meshgrid(*map(np.arange, (3, 4, 6)), indexing="ij"), axis=-1)
  coordinates = index @ affine[:3, :3].T
  turned = [scans.to_viewer(coordinates[..., world], affine) for world in range(3)]
  steps = scans.viewer_spacing(spacing, affine)
  for world, direction in enumerate((-1, 1, 1)):
    np.testing.assert_allclose(np.diff(turned[world], axis=world), direction * steps[world])


def test_sections_are_radiological():
  volume = np.zeros((3, 4, 5))
  volume[0, 3, 4] = 1  # the patient's right, front, head
  axial, coronal, sagittal = (
    scans.section(volume, plane, at) for plane, at in zip(("axial", "coronal", "sagittal"), (4, 3, 0), strict=True)
  )
  assert axial.shape == (4, 3) and axial[3, 0] == 1  # front at the top, right on the left
  assert coronal.shape == (5, 3) and coronal[4, 0] == 1
  assert sagittal.shape == (5, 4) and sagittal[4, 0] == 1  # front on the left
  assert scans.pixel_size((1.0, 2.0, 3.0), "coronal") == (3.0, 1.0)


def test_which_sections():
  label = box((8, 8, 9), (1, 4), (2, 4), (2, 7))
  label[0:6, 0:6, 5] = 1
  assert scans.largest_section(label > 0, "axial") == 5
  assert scans.largest_section(np.zeros((8, 8, 9), bool), "axial") == 4
  assert scans.spread_sections(label > 0, "axial") == [3, 4, 5]
  assert canvas.sections_of(scan(label, label), "all")[0] == ("axial", 5)
  assert canvas.sections_of(scan(label[..., :1], label[..., :1]), "all") == [("axial", 0)]


def test_cropping_keeps_everything_found_and_says_where_it_was():
  whole = scan(box((40, 40, 20), (20, 24), (20, 24), (10, 12)), box((40, 40, 20), (16, 20), (20, 24), (10, 12)), spacing=(1.0, 1.0, 2.0))
  part = whole.cropped()
  assert part.image.shape == (12, 8, 4) and part.origin == (14, 18, 9)  # a quarter of 8 mm is 2 mm: 2, 2 and 1 voxels
  assert (part.label > 0).sum() == (whole.label > 0).sum() and part.maps["run"].sum() == whole.maps["run"].sum()
  assert part.place("axial", 0) == "axial 10"
  empty = scan(np.zeros((4, 4, 4), int), np.zeros((4, 4, 4), int))
  assert empty.cropped() is empty


def test_errors_of_every_kind():
  label, prediction = np.array([[0, 0, 1, 1, 2]]), np.array([[0, 1, 0, 1, 1]])
  np.testing.assert_array_equal(maps.error_map(label, prediction), [[0, maps.ADDED, maps.MISSED, 0, maps.CONFUSED]])


@pytest.mark.parametrize("classes", [("background", "atrium"), ("background", "RV", "MYO")])
def test_an_overlay_fills_its_errors_in_their_colours(classes):
  label, prediction = box((12, 12, 6), (3, 8), (3, 8), (2, 5)), box((12, 12, 6), (4, 9), (3, 8), (2, 5), value=len(classes) - 1)
  figure = maps.overlay(scan(label, prediction, classes=classes), "axial")
  headings = [axes.get_title() for axes in figure.axes[:4]]
  assert headings == ["Image", "Label", "Prediction", "Errors"]
  shown = figure.axes[3].images[1].get_array()
  count = lambda kind: int(np.isclose(shown[..., :3], maps.ERRORS[kind][1], atol=1e-6).all(-1).sum())
  assert count(maps.MISSED) == count(maps.ADDED) == 5
  assert count(maps.CONFUSED) == (20 if len(classes) == 3 else 0)
  assert ("Dice 80.0 %" if len(classes) == 2 else "Dice 0.0 %") in figure.get_suptitle()


def test_an_overlay_without_a_label_shows_the_prediction():
  figure = maps.overlay(scan(None, box((12, 12, 1), (3, 8), (3, 8), (0, 1))))
  assert [axes.get_title() for axes in figure.axes] == ["Image", "Prediction"]


def test_a_confidence_map_shows_the_change_of_two_stages():
  label = box((8, 8, 4), (2, 6), (2, 6), (1, 3))
  before, after = np.full(label.shape, 0.6, np.float32), np.full(label.shape, 0.9, np.float32)
  two = scans.Scan(
    "case", label.astype(np.float32), label, {"before": label, "after": label}, {"before": before, "after": after}, (1.0,) * 3, ("0", "1")
  )
  figure = maps.confidence(two, "axial")
  assert [axes.get_title() for axes in figure.axes[:4]] == ["Image, label", "Before", "After", "After − before"]
  np.testing.assert_allclose(figure.axes[3].images[0].get_array(), 0.3, atol=1e-6)


def test_a_ball_has_the_area_of_a_sphere():
  surfaces = pytest.importorskip("ssl_jax.report.surfaces")
  pytest.importorskip("skimage")
  grid = np.stack(np.meshgrid(*map(np.arange, (40, 40, 20)), indexing="ij"), axis=-1) * (1, 1, 2)
  ball = np.linalg.norm(grid - (18, 20, 20), axis=-1) < 12
  corners, triangles = surfaces.surface(ball, (1.0, 1.0, 2.0))
  middle = np.array([-18, 20, 20])  # to the patient's right now
  np.testing.assert_allclose(np.linalg.norm(corners - middle, axis=1), 12, atol=1.2)
  a, b, c = (corners[triangles[:, i]] for i in range(3))
  normals = np.cross(b - a, c - a)
  assert np.linalg.norm(normals, axis=1).sum() / 2 == pytest.approx(4 * np.pi * 12**2, rel=0.05)
  assert (np.sum(normals * ((a + b + c) / 3 - middle), axis=1) > 0).mean() > 0.99, "triangles must face outwards"
  speck = np.zeros((9, 9, 9), bool)
  speck[4, 4, 4] = True
  assert len(surfaces.surface(speck, (1.0,) * 3)[1]) and not len(surfaces.surface(speck & False, (1.0,) * 3)[1])


def test_surfaces_are_coloured_by_their_distance():
  surfaces = pytest.importorskip("ssl_jax.report.surfaces")
  pytest.importorskip("skimage")
  label = box((30, 30, 30), (8, 20), (8, 20), (8, 20))
  moved = scan(label, np.roll(label, 4, axis=0))
  figure = surfaces.comparison([moved])
  assert [axes.get_title() for axes in figure.axes[:2]] == ["Label", "run"]
  shapes = [[surfaces.surface(each == 1, moved.spacing)] for each in (label, moved.maps["run"])]
  distances = surfaces._distances(shapes[1], shapes[0])
  assert distances.max() == pytest.approx(4, abs=0.1) and distances.min() < 0.2
  assert not surfaces._distances(shapes[0], shapes[0]).any()
  with pytest.raises(InputError, match="single slice"):
    surfaces.comparison([scan(label[..., :1], label[..., :1])])


def write_history(file, lines):
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return file


HISTORY = [
  {"step": 0, "phase": "train", "compile_s": 3.0},
  {"step": 1, "loss": 3.0, "loss_supervised": 2.0, "mu": 0.5},
  {"step": 2, "loss": 9.0, "loss_supervised": 2.0, "mu": 0.5},
  {"step": 2, "loss": 2.0, "loss_supervised": 1.0, "mu": 0.4},
  {"step": 2, "student/dice": 0.7, "pseudo_after/dice_all": 0.8, "pseudo_before/dice_all": 0.6, "pseudo_before/share_reliable": 0.5},
]


def test_history_takes_the_last_word_and_passes_over_a_cut_off_line(tmp_path):
  file = write_history(tmp_path / "metrics.jsonl", HISTORY)
  file.write_text(file.read_text() + '{"step": 3, "lo')
  history = curves.read_history(file)
  np.testing.assert_array_equal(history["loss"], [[1, 2], [3.0, 2.0]])
  assert "phase" not in history
  file.write_text('{"step": 1, "lo\n{"step": 2, "loss": 1.0}\n')
  with pytest.raises(InputError, match="line 1"):
    curves.read_history(file)


def test_curves_of_two_runs(tmp_path):
  history = curves.read_history(write_history(tmp_path / "metrics.jsonl", HISTORY))
  figure = curves.training({"a": history, "b": {"loss": (np.array([1]), np.array([4.0]))}})
  panels = {axes.get_title(): axes for axes in figure.axes}
  assert list(panels)[:3] == ["Loss", "Loss: supervised", "Validation Dice, student [%]"]
  assert [list(line.get_ydata()) for line in panels["Loss"].lines] == [[3.0, 2.0], [4.0]]
  assert [list(line.get_ydata()) for line in panels["Validation Dice, student [%]"].lines] == [[70.0]]
  colours = {line.get_color() for line in panels["Loss"].lines}
  assert len(colours) == 2 and len(panels["Loss: supervised"].lines) == 1


def test_pseudo_labels_before_and_after(tmp_path):
  history = curves.read_history(write_history(tmp_path / "metrics.jsonl", HISTORY))
  figure = curves.pseudo_labels({"a": history, "without": {"loss": history["loss"]}})
  panels = {axes.get_title(): axes for axes in figure.axes}
  before, after = panels["Dice of all voxels [%]"].lines
  assert list(before.get_ydata()) == [60.0] and list(after.get_ydata()) == [80.0] and after.get_linestyle() == "-"
  assert list(panels["µ"].lines[0].get_ydata()) == [0.5, 0.4]
  with pytest.raises(InputError, match="eval_every_steps"):
    curves.pseudo_labels({"b": {"loss": history["loss"]}})


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
  figure = Figure(figsize=(1, 1))
  assert canvas.save(figure, tmp_path / "new" / "a.svg").read_text().lstrip().startswith("<?xml")
  assert canvas.save(figure, tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
  figure.text(0.5, 0.5, "$\\nosuchcommand$")
  with pytest.raises(ValueError, match="nosuchcommand"):
    canvas.save(figure, tmp_path / "c.png")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png", "new"]


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
  """Folders of two runs whose networks are thresholds."""
  source = PhantomSource(PhantomConfig(shape=(24, 20, 16), num_train=2, num_test=2))

  def open_run(folder):
    level = {"low": 0.9, "high": 1.2}[folder.name]
    predict = lambda state, image: np.stack([image[..., 0] < level, image[..., 0] >= level], axis=-1).astype(np.float32)
    cfg = SimpleNamespace(data=SimpleNamespace(patch=(16, 16, 16)))
    split = SimpleNamespace(evaluation=source.test_names)
    experiment = SimpleNamespace(
      source=source, split=split, cfg=cfg, predictors={"student": predict, "teacher": predict}, stage_predictors={}
    )
    return scans.Run(folder, experiment, None)

  monkeypatch.setattr(scans, "open_run", open_run)
  for name in ("high", "low"):
    (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / name / "config.json").write_text("{}")
    write_history(tmp_path / "runs" / name / "metrics.jsonl", HISTORY)
  return tmp_path / "runs"


def test_command_line_draws_one_and_several_runs(two_runs, tmp_path, capsys):
  drawn = lambda: [line.removeprefix(f"{tmp_path}/") for line in capsys.readouterr().out.splitlines()]
  assert main(["overlay", str(two_runs / "low"), "--cases=phantom_test_001", "--format=svg"]) == 0
  assert drawn() == ["runs/low/overlay_phantom_test_001.svg"]
  assert main(["grid", str(two_runs), "--cases=1", "--plane=coronal", "--predictor=teacher"]) == 0
  assert drawn() == ["runs/grid.png"]
  assert main(["confidence", str(two_runs / "low"), f"--output={tmp_path}/out"]) == 0
  assert drawn() == ["out/confidence_phantom_test_000.png"]
  assert main(["curves", str(two_runs / "high"), str(two_runs / "low")]) == 0
  assert drawn() == ["runs/curves.png"]
  assert main(["pseudo", str(two_runs)]) == 0
  assert drawn() == ["runs/pseudo.png"]


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (["overlay", "{runs}/none"], "no such folder"),
    (["overlay", "{runs}/low/empty"], "no config.json"),
    (["curves", "{runs}/low/empty"], "no metrics.jsonl"),
    (["overlay", "{runs}"], "name one"),
    (["grid", "{runs}", "--cases=phantom_test_01"], "did you mean 'phantom_test_001'"),
    (["grid", "{runs}", "--cases=0"], "--cases=0"),
    (["grid", "{runs}", "--predictor=teach"], "did you mean 'teacher'"),
  ],
)
def test_command_line_names_what_is_wrong(two_runs, capsys, arguments, says):
  (two_runs / "low" / "empty").mkdir()
  assert main([argument.format(runs=two_runs) for argument in arguments]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and says in error and error.count("\n") == 1


def test_surfaces_say_what_to_install(two_runs, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "skimage.measure", None)
  assert main(["surfaces", str(two_runs)]) == 2
  assert "pip install scikit-image" in capsys.readouterr().err
