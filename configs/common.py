"""Pieces that configuration files share. Every key of `ssl_jax.types.Config` is there, so all can be overridden from the command line."""

import dataclasses

from ml_collections import ConfigDict

from ssl_jax import methods
from ssl_jax.types import DataConfig, EvalConfig, NetworkConfig, OptimConfig, TrainConfig


def method(name: str, **changes) -> ConfigDict:
  """Returns the `method` group of a method with its defaults, some of them changed; `weights` are merged key by key."""
  options = dataclasses.asdict(methods.load(name).Options())
  weights = changes.pop("weights", {})
  group = ConfigDict({"name": name, **options, **changes})
  for term, value in weights.items():
    group.weights[term] = value
  return group


def learns_from_synthetic(name: str) -> bool:
  """Whether a method has a loss on images made from one labelled slice, and so trains on slices."""
  return "synthetic" in getattr(methods.load(name).Options(), "weights", {})


def base(name: str, **changes) -> ConfigDict:
  """Returns the configuration of a method with the library's defaults; `changes` go to its `method` group."""
  return ConfigDict(
    {
      "seed": 1337,
      "data": dataclasses.asdict(DataConfig()),
      "network": dataclasses.asdict(NetworkConfig()),
      "optim": dataclasses.asdict(OptimConfig()),
      "train": dataclasses.asdict(TrainConfig()),
      "eval": dataclasses.asdict(EvalConfig()),
      "method": method(name, **changes),
      "compare": {},
    }
  )


def shortened(config: ConfigDict, num_steps: int) -> ConfigDict:
  """Sets the length of a run; its phases, and options that count steps, keep their shares of it."""
  total = sum(length for _, length in config.train.phases)
  scaled = lambda steps: max(1, round(steps * num_steps / total)) if steps else 0
  *early, (last, _) = ((phase, scaled(length)) for phase, length in config.train.phases)
  config.train.phases = (*early, (last, num_steps - sum(length for _, length in early)))
  for key in {"ramp_unit_steps", "unlabelled_ramp_steps", "rectify_from_step"} & set(config.method):
    config.method[key] = scaled(config.method[key])
  return config


def left_atrium(config: ConfigDict) -> ConfigDict:
  """Left Atrium at the published shapes: 112×112×80 crops, stride 18×18×4 [C]."""
  config.data.source = "msd"
  config.data.root = "data/la"
  config.data.split = "official"
  config.data.num_labelled = 8
  config.data.patch = (112, 112, 80)
  config.train.batch_labelled = 2
  config.train.batch_unlabelled = 2
  config.eval.stride = (18, 18, 4)
  return config


def pancreas(config: ConfigDict) -> ConfigDict:
  """Pancreas-CT: 96³ crops, stride 16³ [P, C]."""
  config.data.source = "pancreas_h5"
  config.data.root = "data/pancreas"
  config.data.split = "official"
  config.data.num_labelled = 12
  config.data.patch = (96, 96, 96)
  config.eval.stride = (16, 16, 16)
  return config


def brats(config: ConfigDict) -> ConfigDict:
  """BraTS 2019, whole tumour on FLAIR: 3D U-Net, 96³ crops, stride 16³ [P, C]."""
  config.data.source = "brats_h5"
  config.data.root = "data/brats"
  config.data.split = "official"
  config.data.num_labelled = 25
  config.data.patch = (96, 96, 96)
  config.network.name = "unet3d"
  config.network.dropout = 0.3  # [L]
  config.eval.stride = (16, 16, 16)
  return config


def left_atrium_small(config: ConfigDict) -> ConfigDict:
  """Left Atrium at half resolution for two CPU cores: 64×64×32 crops, width 8, 4,000 steps, the last 16 training scans held out."""
  config = shortened(left_atrium(config), 4000)
  config.data.split = "dev"
  config.data.downsample = 2
  config.data.patch = (64, 64, 32)
  config.data.normalise = (
    "zscore"  # [D] per cropped scan: the published normalisation leaves scans too different for running BatchNorm averages
  )
  config.network.width = 8
  config.optim.schedule = "poly"  # [D] a decaying rate settles the running BatchNorm averages
  config.eval.stride = (16, 16, 8)
  config.eval.window_batch = 4
  return config


def acdc(config: ConfigDict) -> ConfigDict:
  """ACDC, right ventricle, myocardium and left ventricle on short-axis slices: 2D U-Net, 256² [C of CML]."""
  config.data.source = "msd"
  config.data.root = "data/acdc"
  config.data.split = "official"
  config.data.slices = True
  config.data.num_labelled = 136  # the slices of 7 patients; 68: of 3
  config.data.patch = (256, 256)
  config.data.view = "resize"
  config.network.name = "unet2d"
  config.train.batch_labelled = 12
  config.train.batch_unlabelled = 12
  config.eval.stride = ()
  config.eval.window_batch = 8
  return config


def small_slices(config: ConfigDict) -> ConfigDict:
  """For two CPU cores: 128², a U-Net of width 8, a third of the batch, 1,500 steps."""
  config = shortened(config, 1500)
  config.data.patch = (128, 128)
  config.network.width = 8
  for stream in ("labelled", "unlabelled", "synthetic"):
    config.train[f"batch_{stream}"] //= 3
  config.optim.name, config.optim.lr = "adam", 1e-3  # [D] SGD at 0.01 is far from done after so few steps
  config.optim.schedule = "poly"  # [D] as in `left_atrium_small`
  return config


def one_exemplar(config: ConfigDict) -> ConfigDict:
  """CMEMS's setting: one labelled slice, 224², coupled Adam [P]; weak views are drawn on the device, each network's own."""
  config.data.slices = True
  config.data.num_labelled = 1
  config.data.synthesis.exemplar = "auto"
  config.data.patch = (224, 224)
  config.data.view = "none"
  config.network.name = "unet2d"
  config.network.upsample = "trilinear"
  config.optim.name = "adam"
  config.optim.lr = 3e-4
  config.train.phases = (("train", 30000),)  # [D]
  config.train.batch_labelled = 12  # [D] 12 views of the exemplar, 12 synthetic images, 12 unlabelled slices
  config.train.batch_unlabelled = 12
  config.train.batch_synthetic = 12
  config.eval.stride = ()
  config.eval.window_batch = 8
  return config
