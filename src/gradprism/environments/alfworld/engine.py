"""The real ALFWorld/TextWorld engine, with what is the same from game to game computed once.

TextWorld parses its grammar with TatSu at every derivation, translates a game's PDDL four times at every start, and derives the text of
every admissible command at every step. All of it depends only on strings that repeat, so it is memoised here, around the library.
An agent reads the library's own text: `tests/environments/test_alfworld_engine.py` plays games in both and compares.

One thing differs on purpose. TextWorld keeps its facts in sets of strings, so the order in which it lists the objects of a shelf
depends on Python's hash seed; here facts are kept sorted, then in the order in which they come about, and text is reproducible.

Not thread-safe (TextWorld's parsers are module globals): one engine per process.
"""

import copy
import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import fast_downward
import textworld.envs.pddl.textgen as textgen
import textworld.logic
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
from textworld import EnvInfos
from textworld.core import GameState
from textworld.envs.pddl import PddlEnv
from textworld.envs.pddl import logic as pddl_logic

from gradprism.environments.alfworld.generator import Game
from gradprism.environments.alfworld.translation import translate

# Where the grammar names the goal; `AlfworldEngine.reset` writes the game's own goal there, so that all games share one parsed grammar.
GOAL_MARK = "UNKNOWN GOAL"


class _OrderedSet(dict):
    """As much of a set as `textworld.logic.State` uses, in insertion order."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)

    remove = discard


class _State(pddl_logic.PddlState):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for index in (self._facts, self._vars_by_type):
            ordered = {key: _OrderedSet.fromkeys(sorted(items, key=str)) for key, items in index.items()}
            index.clear()
            index.update(ordered)
            assert isinstance(index, defaultdict)
            index.default_factory = _OrderedSet  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def _install_caches() -> None:
    """Memoises the library's pure functions, once per process."""
    # The optimised translation serves TextWorld's planner only, which is never asked for: the plain one stands in for it.
    fast_downward.pddl2sas = lambda domain, problem, verbose=False, optimize=False: translate(domain, problem)

    def memoised_parse(parse: Callable[..., Any]) -> Callable[..., Any]:
        parsed = functools.lru_cache(maxsize=65536)(lambda text, rule_name: parse(text, rule_name=rule_name))
        # Derivation writes contexts into the symbols it is given, so each caller gets copies.
        return lambda text, rule_name, **_: [copy.deepcopy(symbol) for symbol in parsed(text, rule_name)]

    # The library deep-copies entities and mappings for every symbol; derivation only reads them.
    textgen.copy_context = lambda context: {
        **context,
        "variables": dict(context["variables"]),
        "mapping": dict(context["mapping"]),
    }
    textgen._parse_and_convert = memoised_parse(textgen._parse_and_convert)
    query = functools.lru_cache(maxsize=4096)(textworld.logic.Rule.parse_conjunctive_query)
    textworld.logic.Rule.parse_conjunctive_query = staticmethod(query)  # pyright: ignore[reportAttributeAccessIssue]
    pddl_logic.PddlState = _State


@functools.cache
def _logic() -> pddl_logic.GameLogic:
    with open(ALFRED_PDDL_PATH) as domain, open(ALFRED_TWL2_PATH) as grammar:
        return pddl_logic.GameLogic(domain=domain.read(), grammar=grammar.read())


class _Env(PddlEnv):
    """`PddlEnv` that shares one parsed grammar and derives each command's text once per game."""

    def load(self, filename_or_data: Any) -> None:
        self._game_file, self._game_data, self.walkthrough = None, filename_or_data, None
        self._logic = _logic()
        self._pddl_state = self._loaded = _State(self.downward_lib, filename_or_data["pddl_problem"], self._logic)
        self._entity_infos = self._get_entity_infos()
        self._commands: dict[str, str] = {}

    def reset(self) -> GameState:
        # The library makes the state that `load` has just made once more, which is half the time of a reset.
        state, self._loaded = self._loaded, None
        if state is None:
            return super().reset()
        pddl_logic.PddlState = lambda *_: state  # pyright: ignore[reportAttributeAccessIssue]
        try:
            return super().reset()
        finally:
            pddl_logic.PddlState = _State

    def _gather_infos(self) -> None:
        state: GameState = self.state
        state["won"], state["lost"] = self._pddl_state.check_goal(), False
        state["_valid_actions"] = self._pddl_state.all_applicable_actions()
        state["_valid_commands"] = [self._command(action) for action in state["_valid_actions"]]
        state["admissible_commands"] = sorted(set(state["_valid_commands"]))

    def _command(self, action: Any) -> str:
        # Commands name entities, whose names and places never change within a game, so the operator's name fixes the text.
        key = self._pddl_state._operators[action.id].name
        if key not in self._commands:
            context = {
                "state": self._pddl_state,
                "facts": (),
                "variables": {ph.name: self._entity_infos[var.name] for ph, var in action.mapping.items()},
                "mapping": action.mapping,
                "entity_infos": self._entity_infos,
            }
            action.command_template = self._logic.grammar.derive(action.command_template, context)
            self._commands[key] = action.format_command({k: info.name for k, info in self._entity_infos.items()})
        return self._commands[key]


class AlfworldEngine:
    """Plays one game at a time. The engine object is expensive (it loads a copy of the planner's library): keep and reuse it."""

    def __init__(self) -> None:
        _install_caches()
        self._env = AlfredDemangler(_Env(EnvInfos(admissible_commands=True)))
        self._state: Any = None

    def reset(self, game: Game) -> str:
        """Starts `game` and returns its first text: the room, then the task."""
        self._env.load({"pddl_problem": game.pddl_problem})
        self._state = self._env.reset()
        return self._state.feedback.split("\n\n", 1)[1].replace(GOAL_MARK, game.goal)

    def step(self, command: str) -> tuple[str, bool]:
        """Plays one command; returns the feedback and whether the task is now done. An inadmissible command changes nothing."""
        self._state, _, _ = self._env.step(command)
        return self._state.feedback.strip(), bool(self._state["won"])

    @property
    def admissible(self) -> list[str]:
        """Commands that the engine accepts now, sorted."""
        return list(self._state["admissible_commands"])
