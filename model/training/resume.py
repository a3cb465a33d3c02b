"""What a run goes on from: a saved state, if it is the same run's, and the same one in all processes."""

from __future__ import annotations

import json
from typing import Any

import torch

from model.checkpoint import Checkpoint
from model.training.distributed import World
from model.training.errors import TrainingError
from model.training.initial_weights import digest, named_by_digest
from model.training.recipe import Recipe
from model.training.run_folder import RunFolder, check_same_run
from model.transforms import Triple


def run_identity(
    recipe: Recipe, init_from: Checkpoint | None, fingerprint: str, normalisation: tuple[Triple, Triple] | None
) -> str:
    """Return what must be the same for a saved state to be gone on from, as JSON.

    `fingerprint` is the images'; `normalisation` is mean and std where these are not the images' own.
    """
    identity: dict[str, Any] = recipe.to_dict()
    identity |= {"init_from": digest(init_from) if init_from else None, "images": fingerprint}
    if normalisation is not None:
        identity["normalisation"] = normalisation
    return json.dumps(identity, sort_keys=True)


def find_state(
    folder: RunFolder, identity: str, init_from: Checkpoint | None, *, world: World, device: torch.device
) -> dict[str, Any] | None:
    """Return the folder's state, on `device`, None if there is none. Raises TrainingError if it is another run's.

    Also if not all processes find the same one: each would train a network of its own, and average it with others.
    """
    state = folder.load_state(device)
    found = (-1, -1) if state is None else (state["epoch"], state["tally"]["steps"])
    positions = world.all_gather(torch.tensor([found]))
    if (positions != positions[0]).any():
        raise TrainingError(f"not all processes find the same state in {folder.path}: --out must be shared")
    if state is not None:
        saved = named_by_digest(json.loads(state["recipe"]), init_from)
        check_same_run(folder.path, saved, json.loads(identity))
    return state
