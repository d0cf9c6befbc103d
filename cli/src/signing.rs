//! Who signs what this command orders, and whose signatures it believes. Everything that comes from
//! the broker is hearsay until a signature that this context trusts says otherwise.

use std::collections::BTreeSet;

use serde::Serialize;

use outstation_protocol::envelope::Envelope;
use outstation_protocol::ids::{Digest, GroupName};
use outstation_protocol::order::Order;
use outstation_protocol::signing::{PublicKey, SignerName, Signers, Unverified};

use crate::context::{Context, UnsignedOrders};
use crate::key::{self, Key};
use crate::message::Failure;
use crate::plan::Newest;

/// What the signatures of an envelope come to, as this context sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Signed {
    By {
        names: BTreeSet<SignerName>,
    },
    /// Nobody has signed it.
    Unsigned,
    /// A person has vouched for it by its digest (`--trust-order`).
    Vouched,
    /// It carries signatures, and they are not those of whom this context trusts.
    Unverified {
        why: String,
    },
}

impl Signed {
    pub fn text(&self) -> String {
        match self {
            Signed::By { names } => {
                names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            }
            Signed::Unsigned => "UNSIGNED".to_owned(),
            Signed::Vouched => "taken on a person's word (--trust-order)".to_owned(),
            Signed::Unverified { why } => format!("UNVERIFIED: {why}"),
        }
    }
}

/// Whose orders this context takes for true.
#[derive(Debug, Clone)]
pub struct Trust {
    context: Context,
    signers: Option<Signers>,
}

impl Trust {
    /// Those whom the context names; else the one who works with it.
    pub fn new(context: &Context, own: Option<PublicKey>) -> Trust {
        let own = || {
            let name = SignerName::try_from("you".to_owned()).expect("a valid name");
            own.map(|key| Signers::only(name, key))
        };
        let signers = context.signers.clone().or_else(own);
        Trust { context: context.clone(), signers }
    }

    /// For who only looks: a key that cannot be read is no reason to show nothing.
    pub fn of_reader(context: &Context) -> Trust {
        let own = key::find(context).ok().flatten();
        Trust::new(context, own.map(|key| key.public()))
    }

    pub fn judge(&self, envelope: &Envelope) -> Signed {
        if self.context.trust_orders.contains(&envelope.digest()) {
            return Signed::Vouched;
        }
        let unverified = |why: String| Signed::Unverified { why };
        let names = match &self.signers {
            None if envelope.signatures.is_empty() => return Signed::Unsigned,
            None => return unverified("this context names no [signers] and has no key".to_owned()),
            Some(signers) => match signers.verify(envelope) {
                Ok(names) => names,
                Err(Unverified::Unsigned) => return Signed::Unsigned,
                Err(error) => return unverified(error.to_string()),
            },
        };
        // A true signature under an order of somewhere else proves nothing here.
        match Order::from_envelope(envelope) {
            Ok(order)
                if order.tenant != self.context.tenant
                    || order.data_plane != self.context.data_plane() =>
            {
                unverified(format!("it is for {} of tenant {}", order.data_plane, order.tenant))
            }
            Ok(_) => Signed::By { names },
            Err(error) => unverified(error.to_string()),
        }
    }

    /// What a plan is made against must be what somebody has ordered, not what the broker says: ends
    /// too, or a group that is there would be taken for gone.
    pub fn check<'a>(
        &self,
        newest: impl IntoIterator<Item = (&'a GroupName, &'a Newest)>,
    ) -> Result<(), Failure> {
        for (group, Newest { generation, digest, signed, .. }) in newest {
            let why = match signed {
                Signed::By { .. } | Signed::Vouched => continue,
                Signed::Unsigned => match self.context.unsigned_orders {
                    UnsignedOrders::Dev => continue,
                    UnsignedOrders::Refuse => "nobody has signed it".to_owned(),
                },
                Signed::Unverified { why } => why.clone(),
            };
            return Err(Failure::new(
                format!(
                    "the broker's newest order of {group}, generation {generation} {digest}, cannot \
                     be trusted: {why}"
                ),
                "if a colleague has made it, name their key in [signers] of the context; if nobody \
                 has, the broker's database was changed: look into it. When you know what became \
                 of it (`outstation-agent status` in the account), go on from it by --trust-order \
                 and the digest above",
            ));
        }
        Ok(())
    }
}

/// Who signs.
pub enum Signing {
    With {
        key: Box<Key>,
        /// As the context calls it; else the key's id.
        name: String,
    },
    /// `unsigned_orders = "dev"` in the context.
    Unsigned,
    /// There is no key; it can be read and planned, not applied.
    Nobody,
}

impl Signing {
    /// To be asked only when the declarations have been read: as long as foreign code runs, no
    /// key is in this process's memory.
    pub fn of(context: &Context) -> anyhow::Result<Signing> {
        if context.unsigned_orders == UnsignedOrders::Dev {
            return Ok(Signing::Unsigned);
        }
        let Some(key) = key::find(context)? else { return Ok(Signing::Nobody) };
        let public = key.public();
        let name = match &context.signers {
            None => public.id().short(),
            Some(signers) => match signers.name_of(&public) {
                Some(name) => name.to_string(),
                None => {
                    let what = format!("the key {public} is not in [signers] of the context");
                    let hint = "sign with a key that is, by --key FILE, or add this one there and \
                                in the account's guardrails";
                    return Err(Failure::new(what, hint).into());
                }
            },
        };
        Ok(Signing::With { key: Box::new(key), name })
    }

    pub fn trust(&self, context: &Context) -> Trust {
        match self {
            Signing::With { key, .. } => Trust::new(context, Some(key.public())),
            Signing::Unsigned | Signing::Nobody => Trust::new(context, None),
        }
    }

    /// Behind a plan.
    pub fn sentence(&self) -> String {
        match self {
            Signing::With { name, .. } => format!("Signed by {name} when applied."),
            Signing::Unsigned => "NOT signed when applied: only an account whose guardrails say \
                                  unsigned_orders = \"dev\" takes it."
                .to_owned(),
            Signing::Nobody => {
                "Cannot be applied from here: there is no key to sign with.".to_owned()
            }
        }
    }

    /// Before anything is asked or written.
    pub fn check(&self) -> Result<(), Failure> {
        match self {
            Signing::With { .. } | Signing::Unsigned => Ok(()),
            Signing::Nobody => Err(no_key()),
        }
    }

    pub fn sign(&self, envelope: &mut Envelope) -> anyhow::Result<()> {
        match self {
            Signing::With { key, .. } => key.sign(envelope),
            Signing::Unsigned => Ok(()),
            Signing::Nobody => Err(no_key().into()),
        }
    }
}

pub fn no_key() -> Failure {
    Failure::new(
        "there is no key to sign orders with",
        "`outstation key create` makes one and says who has to know it; or name one by --key FILE, \
         signing_key in the context, or its text in OUTSTATION_SIGNING_KEY",
    )
}

/// `--trust-order`.
pub type TrustedOrders = BTreeSet<Digest>;

#[cfg(test)]
#[path = "signing_tests.rs"]
mod tests;
