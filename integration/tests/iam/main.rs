//! The agent's IAM policies: held as golden files, judged case by case, shown to be needed word by word, enforced on the real
//! calls of the agent, and read by two linters. Minimal for the calls recorded here under iam-rs; AWS itself was not asked.

mod account;
mod cases;
mod golden;
mod lint;
mod mutants;
mod run;
mod sdk;
mod store;
