"""What the benchmark's server serves. pandas is loaded with it, as by many bundles."""

from typing import Any, Dict

import pandas  # noqa: F401  (workers are to be warm with it)
import payments
from outstation import Attribute, DeclarationError, RequestSource, realtime_feature_view
from outstation.types import Bool, Field, Float64, Int64, String

payment = RequestSource(
    schema=[
        Field("amount", Float64),
        Field("average_amount_30d", Float64),
        Field("amount_24h", Float64),
        Field("payments_1h", Int64),
        Field("payments_24h", Int64),
        Field("card_age_days", Int64),
        Field("merchant_category", String),
        Field("country", String),
        Field("home_country", String),
        Field("is_online", Bool),
    ]
)
FEATURES = [
    Attribute("amount_ratio", Float64),
    Attribute("velocity", Float64),
    Attribute("is_abroad", Bool),
    Attribute("is_new_card", Bool),
    Attribute("risk", Float64),
]


@realtime_feature_view(sources=[payment], mode="python", features=FEATURES)
def small(payment: Dict[str, Any]) -> Dict[str, Any]:
    return payments.score(payment)


@realtime_feature_view(sources=[payment], mode="python", features=FEATURES)
def spin_1ms(payment: Dict[str, Any]) -> Dict[str, Any]:
    return payments.burn(payment)


# Two functions in one server: one is flooded, the other should not notice.
@realtime_feature_view(sources=[payment], mode="python", features=FEATURES)
def noisy(payment: Dict[str, Any]) -> Dict[str, Any]:
    return payments.burn(payment)


@realtime_feature_view(sources=[payment], mode="python", features=FEATURES)
def quiet(payment: Dict[str, Any]) -> Dict[str, Any]:
    return payments.burn(payment)


try:

    @realtime_feature_view(sources=[payment], mode="pandas", features=FEATURES)
    def pandas100(payment: Any) -> Any:
        return payments.score_frame(payment)

except DeclarationError as error:  # a server without that mode still shows the rest
    print(f"pandas100 is left out: {error}")
