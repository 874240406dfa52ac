"""Numbers printed in papers, to stand beside ours: as the papers have them, full resolution, official test cases.

A number that no paper at hand gives is absent. `where` is the paper that prints it, which for baselines is not the method's own.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Published:
  """One row of a paper's table.

  Attributes:
    method: as in `config.method.name`.
    dataset: as `DataConfig.dataset`.
    num_labelled: as `config.data.num_labelled`: scans, on ACDC slices.
    where: the paper.
    select: the checkpoint it reports, "" where it does not say.
    values: metric -> number; Dice and Jaccard in percent, distances in voxels.
    classes: class -> Dice in percent.
  """

  method: str
  dataset: str
  num_labelled: int
  where: str
  select: str
  values: Mapping[str, float]
  classes: Mapping[str, float] = dataclasses.field(default_factory=dict)


def _rows(
  dataset: str, where: str, select: str, metrics: tuple[str, ...], rows: tuple[tuple[str, int, tuple[float, ...]], ...]
) -> tuple[Published, ...]:
  return tuple(
    Published(method, dataset, num_labelled, where, select, dict(zip(metrics, values, strict=True)))
    for method, num_labelled, values in rows
  )


_DJHA = ("dice", "jaccard", "hd95", "asd")
_DJAH = ("dice", "jaccard", "asd", "hd95")
_DHA = ("dice", "hd95", "asd")
_TEST_BEST = "best on the test cases"

PUBLISHED: tuple[Published, ...] = (
  *_rows("la", "CRLN", "last", _DJAH, (("crln", 8, (91.74, 84.79, 1.46, 4.60)), ("crln", 16, (91.88, 85.05, 1.46, 4.51)))),
  *_rows("pancreas", "CRLN", "last", _DJAH, (("crln", 6, (79.17, 66.32, 1.94, 7.27)), ("crln", 12, (82.76, 70.90, 1.35, 4.81)))),
  *_rows("brats", "CRLN", "last", _DJAH, (("crln", 25, (86.73, 77.85, 1.67, 7.15)), ("crln", 50, (87.17, 78.19, 1.62, 6.79)))),
  *_rows(
    "la",
    "CAML, Table 1",
    "last",
    _DJHA,
    (
      ("caml", 4, (87.34, 77.65, 9.76, 2.49)),
      ("caml", 8, (89.62, 81.28, 8.76, 2.02)),
      ("caml", 16, (90.78, 83.19, 6.11, 1.68)),
      ("supervised", 4, (43.32, 31.43, 40.19, 12.13)),
      ("supervised", 8, (79.87, 67.60, 26.65, 7.94)),
      ("supervised", 16, (85.94, 75.99, 16.70, 4.80)),
      ("supervised", 80, (90.98, 83.61, 8.58, 2.10)),
      ("ua_mt", 8, (85.81, 75.41, 18.25, 5.04)),
      ("sassnet", 8, (85.71, 75.35, 14.74, 4.00)),
      ("dtc", 8, (84.55, 73.91, 13.80, 3.69)),
      ("mc_net", 8, (86.87, 78.49, 11.17, 2.18)),
      ("urpc", 8, (83.37, 71.99, 17.91, 4.41)),
      ("ss_net", 8, (86.56, 76.61, 12.76, 3.02)),
      ("mc_net_plus", 8, (87.68, 78.27, 10.35, 1.85)),
    ),
  ),
  *_rows("la", "CML", _TEST_BEST, _DHA, (("cml", 4, (87.63, 8.92, 2.23)), ("cml", 8, (90.36, 6.06, 1.68)))),
  *_rows("acdc", "CML", _TEST_BEST, _DHA, (("cml", 68, (88.53, 1.87, 0.57)), ("cml", 136, (89.42, 1.42, 0.52)))),
  *_rows("brats", "CML", _TEST_BEST, _DHA, (("cml", 25, (85.26, 9.08, 1.83)), ("cml", 50, (86.63, 7.83, 1.45)))),
  *_rows(
    "acdc",
    "CML, Table 2",
    "",
    _DHA,
    (
      ("supervised", 136, (79.41, 9.35, 2.70)),
      ("ua_mt", 136, (81.65, 6.88, 2.02)),
      ("mc_net", 136, (86.44, 5.50, 1.84)),
      ("ss_net", 136, (86.78, 6.07, 1.40)),
      ("mcf", 136, (87.67, 3.89, 1.14)),
    ),
  ),
  Published("cmems", "acdc", 1, "CMEMS", "", {"dice": 81.7, "hd95": 7.35}, {"RV": 75.9, "MYO": 79.3, "LV": 90.0}),
  Published(
    "cmems",
    "synapse",
    1,
    "CMEMS",
    "",
    {"dice": 59.7, "hd95": 55.02},
    {
      "aorta": 84.0,
      "gallbladder": 23.0,
      "left_kidney": 80.2,
      "right_kidney": 75.7,
      "liver": 83.3,
      "pancreas": 15.3,
      "spleen": 87.3,
      "stomach": 29.1,
    },
  ),
  *_rows(
    "acdc",
    "CMEMS, Table 2",
    "",
    ("dice",),
    (("supervised", 1, (14.2,)), ("fixmatch", 1, (52.9,)), ("cps", 1, (19.4,)), ("els_net", 1, (41.0,))),
  ),
)

DATASETS = tuple(dict.fromkeys(row.dataset for row in PUBLISHED))


def find(dataset: str, num_labelled: int, method: str | None = None) -> list[Published]:
  """Returns what is published on a data set with so many labelled, of one method or of all, in the order above."""
  return [row for row in PUBLISHED if (row.dataset, row.num_labelled) == (dataset, num_labelled) and method in (None, row.method)]
