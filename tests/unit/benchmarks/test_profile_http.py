from benchmarks.profile_http import tabulate

LOOP = "<module> (ours.py:9);asyncio_run (uvicorn/_compat.py:30)"


def test_functions_are_counted_once_a_sample_whatever_their_lines_and_other_threads_are_left_out():
    total, within, at_top = tabulate(
        f"{LOOP};read (a.py:1);read (a.py:2) 3\n{LOOP};read (a.py:7) 2\n{LOOP} 1\n_worker (thread.py:81) 90\n"
    )
    assert total == 6
    assert within["read (a.py)"] == at_top["read (a.py)"] == 5
    assert at_top["asyncio_run (uvicorn/_compat.py)"] == 1
    assert "_worker (thread.py)" not in within
