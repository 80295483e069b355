"""Routes agent trajectories to supervised fine-tuning or reinforcement learning by gradient concentration (PRISM).

    import gradprism as gp

Every public name is listed here and loaded from its room when it is first used, so that the import itself takes a moment and no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradprism.concentration import register_metric
    from gradprism.environments.demonstrations import collect
    from gradprism.environments.protocol import Environment, Info, Step, Task
    from gradprism.environments.registry import make_environment, register_environment
    from gradprism.estimate import Estimate, Figure, Hardware, estimate_probe, estimate_rl, estimate_sft, hardware
    from gradprism.evaluation.config import EvaluationConfig
    from gradprism.evaluation.run import Evaluation, evaluate
    from gradprism.experiments.config import ExperimentConfig, load_config
    from gradprism.experiments.results import Results, read_results
    from gradprism.exporting.registry import export, register_exporter
    from gradprism.models import ModelSpec
    from gradprism.package_data import shipped, write_template
    from gradprism.probing.api import probe
    from gradprism.probing.callback import ProbeCallback
    from gradprism.probing.manifest import ProbeManifest, UnitInfo
    from gradprism.probing.rays import Ray
    from gradprism.probing.result import Probe, ProbeRun
    from gradprism.probing.work import ProbeOptions
    from gradprism.reporting.run import experiment, run
    from gradprism.rollouts.config import RolloutConfig
    from gradprism.rollouts.episode import Episode, StopReason, Turn
    from gradprism.rollouts.player import rollout
    from gradprism.routing.audit import Audit
    from gradprism.routing.policies import PolicyContext, register_policy
    from gradprism.routing.routes import Routes, route
    from gradprism.routing.sets import RlTask
    from gradprism.routing.stability import audit
    from gradprism.runtime.errors import GradprismError
    from gradprism.runtime.usage import Usage
    from gradprism.training.processes import training_processes
    from gradprism.training.rl import train_rl
    from gradprism.training.rl_config import RlConfig
    from gradprism.training.sft import train_sft
    from gradprism.training.sft_config import SftConfig
    from gradprism.training.summary import TrainingSummary
    from gradprism.trajectories.corpus import Corpus, load_corpus
    from gradprism.trajectories.formats import register_format
    from gradprism.trajectories.record import Message, Trajectory
    from gradprism.trajectories.rendering import Renderer, load_tokenizer

__version__ = "0.1.0"
__all__ = [
    "Audit",
    "Corpus",
    "Environment",
    "Episode",
    "Estimate",
    "Evaluation",
    "EvaluationConfig",
    "ExperimentConfig",
    "Figure",
    "GradprismError",
    "Hardware",
    "Info",
    "Message",
    "ModelSpec",
    "PolicyContext",
    "Probe",
    "ProbeCallback",
    "ProbeManifest",
    "ProbeOptions",
    "ProbeRun",
    "Ray",
    "Renderer",
    "Results",
    "RlConfig",
    "RlTask",
    "RolloutConfig",
    "Routes",
    "SftConfig",
    "Step",
    "StopReason",
    "Task",
    "TrainingSummary",
    "Trajectory",
    "Turn",
    "UnitInfo",
    "Usage",
    "audit",
    "collect",
    "estimate_probe",
    "estimate_rl",
    "estimate_sft",
    "evaluate",
    "experiment",
    "export",
    "hardware",
    "load_config",
    "load_corpus",
    "load_tokenizer",
    "make_environment",
    "probe",
    "read_results",
    "register_environment",
    "register_exporter",
    "register_format",
    "register_metric",
    "register_policy",
    "rollout",
    "route",
    "run",
    "shipped",
    "train_rl",
    "train_sft",
    "training_processes",
    "write_template",
]

_ROOMS = {
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
    "probing.api": "probe",
    "probing.callback": "ProbeCallback",
    "probing.manifest": "ProbeManifest UnitInfo",
    "probing.rays": "Ray",
    "probing.result": "Probe ProbeRun",
    "probing.work": "ProbeOptions",
    "reporting.run": "experiment run",
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
    "training.processes": "training_processes",
    "training.rl": "train_rl",
    "training.rl_config": "RlConfig",
    "training.sft": "train_sft",
    "training.sft_config": "SftConfig",
    "training.summary": "TrainingSummary",
    "trajectories.corpus": "Corpus load_corpus",
    "trajectories.formats": "register_format",
    "trajectories.record": "Message Trajectory",
    "trajectories.rendering": "Renderer load_tokenizer",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'gradprism' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradprism.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
