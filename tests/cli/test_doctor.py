"""`pureebm doctor`: a table for people, one JSON object, 0 or 1."""

from pureebm.evaluation import doctor


def test_a_sound_machine_is_zero(pureebm):
    done = pureebm("doctor", "--json")
    assert done.code == 0 and done.json["healthy"] is True
    assert {check["status"] for check in done.json["checks"]} <= {"ok", "absent"}


def test_a_failed_check_is_one_and_stands_in_the_table(pureebm, monkeypatch):
    monkeypatch.setattr(doctor, "philox4x32", lambda counter, key: counter)
    done = pureebm("doctor")
    assert (done.code, done.out) == (1, "")
    assert "failed  noise: Philox4x32-10 of counter (0, 0, 0, 0)" in done.err
    assert "1 checks failed: do not trust results of this machine" in done.err and "torch 2." in done.err
