"""`pureebm verify`: exit codes and what is told."""

import json


def test_untouched_changed_and_missing(pureebm, image_folder, tiny_model, tmp_path):
    target = tmp_path / "out"
    assert pureebm("purify", image_folder, target, "--model", tiny_model, "--limit", 20).code == 0
    done = pureebm("verify", target, "--n", 5)
    assert (done.code, done.out) == (0, "") and "5 of 5 items are as recorded (chosen by --seed " in done.err
    done = pureebm("verify", target, "--n", 3, "--seed", 7, "--json")
    assert done.code == 0 and done.json["verified"] is True
    assert (done.json["checked"], done.json["same"], done.json["chosen_by"]) == (3, 3, 7)
    assert pureebm("verify", target, "--n", 3, "--seed", 7, "--json").json["items"] == done.json["items"]

    record = json.loads((target / "pureebm-run.json").read_text())
    record["settings"]["seed"] = 1
    (target / "pureebm-run.json").write_text(json.dumps(record))
    done = pureebm("verify", target, "--n", 2)
    assert done.code == 1 and "bytes: purifying it again gives others" in done.err and "0 of 2 items" in done.err

    done = pureebm("verify", image_folder, "--json")
    assert done.code == 2 and "no finished target" in done.json["error"]
