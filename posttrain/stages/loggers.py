"""Whether the loggers of `train.report_to` can be set up on this machine: packages, environment variables.

transformers asks when the trainer is built or begins to train, after rows are tokenised and the model is
loaded, and answers with a traceback. Imports neither transformers nor the packages. Left out: whether a key
is valid, and the accounts of packages that log on by a command of their own (wandb, clearml, swanlab).
"""

from __future__ import annotations

import importlib.util
import os
from importlib.machinery import ModuleSpec
from pathlib import Path

from posttrain.recipe.build import Problems

NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "azure_ml": (("azureml.core.run",),),
    "dagshub": (("dagshub",), ("mlflow",)),
    "flyte": (("flytekit",),),
    "tensorboard": (("tensorboard", "tensorboardX"),),
}
"""Logger -> the packages that it needs, each with its alternatives, where that is not the one of its name."""
SERVER = "KUBEFLOW_TRAINER_SERVER_URL"
SWITCHES = {"mlflow": "DISABLE_MLFLOW_INTEGRATION", "kubeflow": "DISABLE_KUBEFLOW_INTEGRATION"}
"""Logger -> environment variable with which transformers counts it as not installed."""
ALL = (
    "azure_ml",
    "clearml",
    "codecarbon",
    "dagshub",
    "dvclive",
    "mlflow",
    "neptune",
    "swanlab",
    "tensorboard",
    "trackio",
)
"""Loggers that `all` takes wherever a package, or a folder of its name, is found. The others it takes where
they are set up: comet_ml, kubeflow, wandb."""
COMET = ("COMET_API_KEY", "COMET_CONFIG", "COMET_START_ONLINE")
"""Environment variables of which one says which account, or that none is used."""
DAGSHUB = "MLFLOW_TRACKING_URI"


def loggers(names: list[str], problems: Problems) -> None:
    """Adds what keeps the loggers `names` from being set up; kubeflow's is a server that the environment
    names."""
    at = "train.report_to"
    for name in names:
        switch = SWITCHES.get(name, "")
        if _switched_off(name):
            problems.add(
                at, f"{at}: {name} is switched off by the environment variable {switch}=TRUE; unset it"
            )
        elif name == "kubeflow":
            if SERVER not in os.environ:
                problems.add(at, f"{at}: kubeflow needs the environment variable {SERVER}, which is not set")
        elif name == "all":
            for found in filter(_taken_by_all, ALL):
                _one(found, problems, "of all, ")
        elif name != "none":
            _one(name, problems)


def _switched_off(name: str) -> bool:
    return os.environ.get(SWITCHES.get(name, ""), "").upper() == "TRUE"


def _taken_by_all(name: str) -> bool:
    """Whether transformers finds all packages of the logger, as a folder without code, too."""
    needed = NEEDS.get(name, ((name,),))
    return not _switched_off(name) and all(any(_spec(p) is not None for p in packages) for packages in needed)


def _one(name: str, problems: Problems, opening: str = "") -> None:
    """Adds what the logger `name` lacks; `opening` says that nobody named it."""
    _packages(name, NEEDS.get(name, ((name,),)), problems, opening)
    at, missing = "train.report_to", None
    if name == "dagshub" and os.environ.get(DAGSHUB, "").count("/") < 2:
        missing = f"{DAGSHUB}=https://dagshub.com/OWNER/REPOSITORY.mlflow"
    files = [folder / ".comet.config" for folder in (Path(), Path.home())]
    if name == "comet_ml" and not any(map(os.environ.get, COMET)) and not any(f.is_file() for f in files):
        missing = f"{COMET[0]}, or a file {files[1]}"
    if missing is not None:
        problems.add(at, f"{at}: {opening}{name} needs the environment variable {missing}")


def _packages(name: str, needed: tuple[tuple[str, ...], ...], problems: Problems, opening: str) -> None:
    at = "train.report_to"
    for packages in needed:
        if any(_installed(package) for package in packages):
            continue
        missing = f"{opening}{name} needs the package {' or '.join(packages)}, which is not installed"
        if (folder := next(filter(None, map(_folder_of, packages)), None)) is not None:
            missing += f" ({folder} only has its name)"
        mend = f"install it, or remove {name}" if not opening else "rename the folder, or list the loggers"
        problems.add(at, f"{at}: {missing}; {mend}")


def _spec(package: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(package)
    except ModuleNotFoundError:  # the package that a dotted name is in
        return None


def _installed(package: str) -> bool:
    """Whether `package` can be imported. A folder of its name that holds no code, such as the `wandb/` that
    its runs leave in the working directory, is found as a namespace and is none."""
    spec = _spec(package)
    return spec is not None and spec.origin is not None


def _folder_of(package: str) -> str | None:
    """The folder that is found as a namespace under the name of `package`."""
    spec = importlib.util.find_spec(package.partition(".")[0])
    if spec is None or spec.origin is not None:
        return None
    return next(iter(spec.submodule_search_locations or ()), None)
