"""The scoring tool on players whose scores are known: one that obeys every word, and one that obeys none."""

from megatv.eval.toy_checkpoint import score, table

STARTS = 24
INTERVENTIONS = ("jump", "left_click", "reload", "backward")
RECORD = {"checkpoint": "run", "step": 1, "mode": "tv2tv", "starts": STARTS, "seconds": 1.0}


def test_an_obedient_player_scores_full_marks(make_player):
    player = make_player(STARTS)
    scores = score(player, STARTS, 16, 0, player.config.sample)
    assert scores["ended_early"] == 0 and scores["psnr"] > 50
    assert scores["valid_lines"]["mean"] == 1.0 and scores["valid_lines"]["n"] == 13 * STARTS
    assert scores["impossible_transitions"]["mean"] < 0.002
    assert all(followed["mean"] > 0.99 for followed in scores["words_followed"].values())
    assert [(row["action"], row["seconds"]) for row in scores["interventions"]] == [
        (name, seconds) for seconds in (0.8125, 2.8125) for name in INTERVENTIONS
    ]
    for row in scores["interventions"]:
        assert row["done"]["n"] >= 8
        assert row["done"]["mean"] > 0.98, row
        assert row["without"]["mean"] < 0.6
    assert scores["interventions_done_mean"] > 0.98 and scores["interventions_without_mean"] < 0.4
    alone = player.asked[:STARTS]
    assert [r.seed for r in alone] == list(range(STARTS)) and not any(r.interventions for r in alone)
    assert not any(request.given_words for request in player.asked)  # the model says the words of t = 0, too
    said = table({**RECORD, **scores})
    assert "done: jump at 0.81 s" in said and "100.0 %" in said


def test_a_player_that_ignores_words_scores_nothing(make_player):
    player = make_player(STARTS, obeys=False)
    scores = score(player, STARTS, STARTS, 3, player.config.sample)
    assert scores["interventions_done_mean"] == scores["interventions_without_mean"] == 0.0
    assert scores["words_followed"]["turn"]["mean"] == 0.0
    assert scores["impossible_transitions"]["mean"] < 0.002
    assert {r.seed for r in player.asked} == set(range(3 * STARTS, 4 * STARTS))


def test_t2v_is_scored_by_its_pictures_alone(make_player):
    player = make_player(STARTS, obeys=False, mode="t2v")
    scores = score(player, STARTS, STARTS, 0, player.config.sample)
    assert len(player.asked) == STARTS and "interventions" not in scores and "valid_lines" not in scores
    assert "PSNR" in table({**RECORD, **scores})
