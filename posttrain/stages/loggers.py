"""Whether the loggers of `train.report_to` can be set up on this machine: packages, environment variables.

transformers asks when the trainer is built, after rows are tokenised and the model is loaded, and answers
with a traceback. Imports neither transformers nor the packages. Left out: accounts and keys, which each
package asks for by itself.
"""

from __future__ import annotations

import importlib.util
import os

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


def loggers(names: list[str], problems: Problems) -> None:
    """Adds what keeps the loggers `names` from being set up; kubeflow's is a server that the environment
    names."""
    at = "train.report_to"
    for name in names:
        switch = SWITCHES.get(name, "")
        if os.environ.get(switch, "").upper() == "TRUE":
            problems.add(
                at, f"{at}: {name} is switched off by the environment variable {switch}=TRUE; unset it"
            )
        elif name == "kubeflow":
            if SERVER not in os.environ:
                problems.add(at, f"{at}: kubeflow needs the environment variable {SERVER}, which is not set")
        elif name not in ("all", "none"):
            _packages(name, NEEDS.get(name, ((name,),)), problems)


def _packages(name: str, needed: tuple[tuple[str, ...], ...], problems: Problems) -> None:
    at = "train.report_to"
    for packages in needed:
        if any(_installed(package) for package in packages):
            continue
        missing = f"{name} needs the package {' or '.join(packages)}, which is not installed"
        if (folder := _folder_of(packages[0])) is not None:
            missing += f" ({folder} only has its name)"
        problems.add(at, f"{at}: {missing}; install it, or remove {name}")


def _installed(package: str) -> bool:
    """Whether `package` can be imported. A folder of its name that holds no code, such as the `wandb/` that
    its runs leave in the working directory, is found as a namespace and is none."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # the package that a dotted name is in
        return False
    return spec is not None and spec.origin is not None


def _folder_of(package: str) -> str | None:
    """The folder that is found as a namespace under the name of `package`."""
    spec = importlib.util.find_spec(package.partition(".")[0])
    if spec is None or spec.origin is not None:
        return None
    return next(iter(spec.submodule_search_locations or ()), None)
