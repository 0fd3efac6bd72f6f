"""`Purifier`: the class that people import. Images or whole data sets in, the same kind out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pureebm.data.pictures import decode_pil, encode_pil
from pureebm.data.ranges import to_pm1, to_uint8
from pureebm.energy.weights import DEFAULT_MODEL, load_model
from pureebm.errors import InputError
from pureebm.purify.job import JobConfig, RunRecord, run
from pureebm.purify.stages import LangevinStage
from pureebm.sampling.langevin import LangevinConfig
from pureebm.types import JSON, Energy, Progress, Stage
