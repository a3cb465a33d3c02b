"""The service with and without waiting for clients that come back, in turns."""

from benchmarks import returning_clients


def test_each_is_loaded_first_in_every_other_round(monkeypatch):
    loaded = []

    def one_round(_wrk, service, _clients, _seconds):
        loaded.append(service)
        return {"requests_per_s": 30.0 if service == "A" else 20.0}

    monkeypatch.setattr(returning_clients, "one_round", one_round)
    monkeypatch.setattr(returning_clients, "CLIENTS", (2,))
    figures = returning_clients.compare(None, "A", "B", rounds=3)
    assert "".join(loaded) == "ABBAAB"
    assert figures["2"]["ratios"] == [1.5, 1.5, 1.5]
    assert (figures["2"]["with"], figures["2"]["without"]) == (30.0, 20.0)
