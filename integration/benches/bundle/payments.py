"""The functions that every server of the benchmark calls, ours and the others alike."""

import time
from typing import Any, Dict

FEATURES = ("amount_ratio", "velocity", "is_abroad", "is_new_card", "risk")
MILLISECOND_NS = 1_000_000


def score(payment: Dict[str, Any]) -> Dict[str, Any]:
    """Ten scalars in, five features out: what a fraud model asks of each payment."""
    average = payment["average_amount_30d"]
    ratio = payment["amount"] / average if average else 0.0
    velocity = payment["payments_1h"] * 24.0 / (payment["payments_24h"] or 1)
    is_abroad = payment["country"] != payment["home_country"]
    is_new_card = payment["card_age_days"] < 30
    risk = 0.2 * ratio + 0.1 * velocity + 0.3 * is_abroad + 0.3 * is_new_card
    if payment["is_online"] and payment["merchant_category"] == "electronics":
        risk += 0.1
    return {
        "amount_ratio": ratio,
        "velocity": velocity,
        "is_abroad": is_abroad,
        "is_new_card": is_new_card,
        "risk": min(1.0, risk + payment["amount_24h"] * 1e-6),
    }


def burn(payment: Dict[str, Any]) -> Dict[str, Any]:
    """The same after a millisecond of CPU, by the thread's own clock: a wait for a core is not work."""
    until = time.thread_time_ns() + MILLISECOND_NS
    while time.thread_time_ns() < until:
        pass
    return score(payment)


def score_frame(payments: Any) -> Any:
    """The same for a frame of payments."""
    import pandas

    ratio = (payments["amount"] / payments["average_amount_30d"]).fillna(0.0)
    velocity = payments["payments_1h"] * 24.0 / payments["payments_24h"].clip(lower=1)
    is_abroad = payments["country"] != payments["home_country"]
    is_new_card = payments["card_age_days"] < 30
    risk = 0.2 * ratio + 0.1 * velocity + 0.3 * is_abroad + 0.3 * is_new_card
    risk += 0.1 * (payments["is_online"] & (payments["merchant_category"] == "electronics"))
    return pandas.DataFrame(
        {
            "amount_ratio": ratio,
            "velocity": velocity,
            "is_abroad": is_abroad,
            "is_new_card": is_new_card,
            "risk": (risk + payments["amount_24h"] * 1e-6).clip(upper=1.0),
        }
    )
