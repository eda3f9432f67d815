"""What `train.loggers` may name: what each of them is installed as, and what of a caller's environment reaches it.

A logger is told of a training and decides nothing in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from specc.core.errors import Exit, SpeccError


@dataclass(frozen=True, slots=True)
class Logger:
    """A library that takes metrics: the module it is, and the variables by which a user tells it where to send them."""

    module: str
    environment: tuple[str, ...] = ()


LOGGERS: Final[Mapping[str, Logger]] = {
    "tensorboard": Logger("tensorboard"),
    "trackio": Logger("trackio", ("TRACKIO_DIR", "TRACKIO_SERVER_URL", "TRACKIO_WRITE_TOKEN")),
    "wandb": Logger("wandb", ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT",
                              "WANDB_RUN_GROUP", "WANDB_TAGS")),
    "mlflow": Logger("mlflow", ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
                                "MLFLOW_TRACKING_TOKEN", "MLFLOW_EXPERIMENT_NAME")),
}  # fmt: skip
TO_REACH_A_SERVER: Final = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
)  # fmt: skip
SECRETS: Final = ("TRACKIO_WRITE_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def variables(names: Iterable[str]) -> tuple[str, ...]:
    """Return the variables that reach a training that is logged to some loggers."""
    own = tuple(variable for name in names for variable in LOGGERS[name].environment)
    return (*own, *TO_REACH_A_SERVER) if own else ()


def require(names: Iterable[str]) -> None:
    """Raise `SpeccError` if a logger is not installed; none is imported."""
    absent = [name for name in names if find_spec(LOGGERS[name].module) is None]
    if absent:
        listed = " and ".join(f"`{name}`" for name in absent)
        raise SpeccError(
            f"`train.loggers` names {listed}, and {'they are' if len(absent) > 1 else 'it is'} not installed",
            hint="`pip install 'specc[loggers]'` brings all that it may name; or leave it out: it decides no result",
            code=Exit.STAGE,
        )
