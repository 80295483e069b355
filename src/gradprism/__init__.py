"""Routes agent trajectories to supervised fine-tuning or reinforcement learning by gradient concentration (PRISM).

    import gradprism as gp

Every public name is listed here and loaded from its room when it is first used, so that the import itself takes a moment and no torch.
"""

# ruff: noqa: I001 (a room per line)

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradprism.advice.advise import Advice as Advice, advise as advise
    from gradprism.concentration import register_metric as register_metric
    from gradprism.environments.demonstrations import collect as collect
    from gradprism.environments.protocol import Environment as Environment, Info as Info, Step as Step, Task as Task
    from gradprism.environments.registry import make_environment as make_environment, register_environment as register_environment
    from gradprism.estimate import (
        Estimate as Estimate,
        Figure as Figure,
        Hardware as Hardware,
        estimate_probe as estimate_probe,
        estimate_rl as estimate_rl,
        estimate_sft as estimate_sft,
        hardware as hardware,
    )
    from gradprism.evaluation.config import EvaluationConfig as EvaluationConfig
    from gradprism.evaluation.run import Evaluation as Evaluation, evaluate as evaluate
    from gradprism.experiments.config import ExperimentConfig as ExperimentConfig, load_config as load_config
    from gradprism.experiments.results import Results as Results, read_results as read_results
    from gradprism.exporting.registry import export as export, register_exporter as register_exporter
    from gradprism.models import ModelSpec as ModelSpec
    from gradprism.package_data import shipped as shipped, write_template as write_template
    from gradprism.pipeline import experiment as experiment, run as run
    from gradprism.probing.api import probe as probe
    from gradprism.probing.callback import ProbeCallback as ProbeCallback
    from gradprism.probing.manifest import ProbeManifest as ProbeManifest, UnitInfo as UnitInfo
    from gradprism.probing.rays import Ray as Ray
    from gradprism.probing.result import Probe as Probe, ProbeRun as ProbeRun
    from gradprism.probing.work import ProbeOptions as ProbeOptions
    from gradprism.rollouts.config import RolloutConfig as RolloutConfig
    from gradprism.rollouts.episode import Episode as Episode, StopReason as StopReason, Turn as Turn
    from gradprism.rollouts.player import rollout as rollout
    from gradprism.routing.audit import Audit as Audit
    from gradprism.routing.policies import PolicyContext as PolicyContext, register_policy as register_policy
    from gradprism.routing.routes import Routes as Routes, route as route
    from gradprism.routing.sets import RlTask as RlTask
    from gradprism.routing.stability import audit as audit
    from gradprism.runtime.errors import GradprismError as GradprismError
    from gradprism.runtime.usage import Usage as Usage
    from gradprism.studio.api import export_studio as export_studio, serve_studio as serve_studio
    from gradprism.training.processes import training_processes as training_processes
    from gradprism.training.rl import train_rl as train_rl
    from gradprism.training.rl_config import RlConfig as RlConfig
    from gradprism.training.sft import train_sft as train_sft
    from gradprism.training.sft_config import SftConfig as SftConfig
    from gradprism.training.summary import TrainingSummary as TrainingSummary
    from gradprism.trajectories.chat_options import ChatOptions as ChatOptions
    from gradprism.trajectories.corpus import Corpus as Corpus, load_corpus as load_corpus
    from gradprism.trajectories.formats import register_format as register_format
    from gradprism.trajectories.record import Message as Message, ToolCall as ToolCall, Trajectory as Trajectory
    from gradprism.trajectories.rendering import Renderer as Renderer, load_tokenizer as load_tokenizer

__version__ = "0.1.0"
_ROOMS = {
    "advice.advise": "Advice advise",
    "concentration": "register_metric",
    "environments.demonstrations": "collect",
    "environments.protocol": "Environment Info Step Task",
    "environments.registry": "make_environment register_environment",
    "estimate": "Estimate Figure Hardware estimate_probe estimate_rl estimate_sft hardware",
    "evaluation.config": "EvaluationConfig",
    "evaluation.run": "Evaluation evaluate",
    "experiments.config": "ExperimentConfig load_config",
    "experiments.results": "Results read_results",
    "exporting.registry": "export register_exporter",
    "models": "ModelSpec",
    "package_data": "shipped write_template",
    "pipeline": "experiment run",
    "probing.api": "probe",
    "probing.callback": "ProbeCallback",
    "probing.manifest": "ProbeManifest UnitInfo",
    "probing.rays": "Ray",
    "probing.result": "Probe ProbeRun",
    "probing.work": "ProbeOptions",
    "rollouts.config": "RolloutConfig",
    "rollouts.episode": "Episode StopReason Turn",
    "rollouts.player": "rollout",
    "routing.audit": "Audit",
    "routing.policies": "PolicyContext register_policy",
    "routing.routes": "Routes route",
    "routing.sets": "RlTask",
    "routing.stability": "audit",
    "runtime.errors": "GradprismError",
    "runtime.usage": "Usage",
    "studio.api": "export_studio serve_studio",
    "training.processes": "training_processes",
    "training.rl": "train_rl",
    "training.rl_config": "RlConfig",
    "training.sft": "train_sft",
    "training.sft_config": "SftConfig",
    "training.summary": "TrainingSummary",
    "trajectories.chat_options": "ChatOptions",
    "trajectories.corpus": "Corpus load_corpus",
    "trajectories.formats": "register_format",
    "trajectories.record": "Message ToolCall Trajectory",
    "trajectories.rendering": "Renderer load_tokenizer",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}
__all__ = sorted(_ROOM_OF)  # pyright: ignore[reportUnsupportedDunderAll] # the imports for types above say the same


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'gradprism' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradprism.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
