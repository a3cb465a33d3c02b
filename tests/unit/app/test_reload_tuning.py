"""What was chosen by measurement, when the checkpoint is loaded again."""

import weakref
from types import SimpleNamespace

import pytest

from app.engine_errors import EngineUnavailable, RuntimeUnfit
from app.engine_service import EngineService
from app.settings import Settings
from tests.fakes import FakeEngine

TUNING = {"batch_sizes": (1, 8), "precision": "float32", "runtime": "mnn"}


def reloaded(settings, works):
    """Return the settings that the engine was asked for with, at the reload of a service that runs in MNN."""
    asked = []

    def load(settings):
        asked.append(settings)
        if not works(settings):
            raise RuntimeUnfit("runtime mnn does not work here")
        return FakeEngine()

    service = EngineService(settings, load)
    service._predictor = SimpleNamespace(engine=SimpleNamespace(tuning=TUNING))
    try:
        service._load_engine()
    except EngineUnavailable:
        asked.append("refused")
    service._loader.shutdown()
    return asked


def tunings(asked):
    """Return what the engine was asked for with, by the names in TUNING, or "refused"."""
    return [one if one == "refused" else {name: getattr(one, name) for name in TUNING} for one in asked]


def test_what_was_chosen_stays():
    assert tunings(reloaded(Settings(), lambda _settings: True)) == [TUNING]


@pytest.mark.parametrize("split", [None, True, False])
def test_what_the_user_has_set_stays(split):
    asked = reloaded(Settings(split_batches=split), lambda settings: settings.runtime != "mnn")
    assert [settings.split_batches for settings in asked] == [split, split]


@pytest.mark.parametrize(
    ("runtime", "asked"),
    [("auto", [TUNING, TUNING | {"runtime": "auto"}]), ("mnn", [TUNING, "refused"])],
)
def test_a_runtime_that_does_not_do_for_the_new_checkpoint_is_left_unless_it_was_asked_for(runtime, asked, caplog):
    assert tunings(reloaded(Settings(runtime=runtime), lambda settings: settings.runtime != "mnn")) == asked
    told = [] if runtime == "mnn" else ["runtime mnn does not work here: choosing again"]
    assert caplog.messages == told


def test_what_a_runtime_that_does_not_do_has_built_is_gone_before_another_one_is_tried():
    built = []

    class Network:
        pass

    def build_and_fail():
        network = Network()
        built.append(weakref.ref(network))
        raise ValueError("its logits differ")

    def works(settings):
        if settings.runtime == "auto":
            assert built[0]() is None
            return True
        try:
            build_and_fail()
        except ValueError as error:
            raise RuntimeUnfit("runtime mnn does not work here") from error

    assert tunings(reloaded(Settings(), works)) == [TUNING, TUNING | {"runtime": "auto"}]
