//! Which AutoScaling group an instance is in, as AWS says it now. A whole fleet may ask at once: questions gather for a
//! moment, and one call answers up to fifty.

use std::sync::Mutex;
use std::time::Duration;

use outstation_protocol::InstanceId;
use tokio::sync::oneshot;

use super::aws::{Aws, CallError};
use super::shared::lock;

/// AWS's own limit of DescribeAutoScalingInstances.
pub const INSTANCES_A_CALL_MAX: usize = 50;
/// A node takes a minute to boot: nobody notices, and those that boot together come together.
const GATHERING: Duration = Duration::from_millis(100);

type Answer = Result<Option<String>, CallError>;

pub struct Whereabouts {
    aws: Aws,
    questions: Mutex<Vec<Question>>,
    /// Whoever holds it gathers for all who have asked.
    gathering: tokio::sync::Mutex<()>,
}

struct Question {
    instance: InstanceId,
    answer: oneshot::Sender<Answer>,
}

impl Whereabouts {
    pub fn new(aws: Aws) -> Whereabouts {
        let (questions, gathering) = (Mutex::default(), tokio::sync::Mutex::default());
        Whereabouts { aws, questions, gathering }
    }

    /// The AutoScaling group's name. Whoever gives up waiting costs the others nothing but time.
    pub async fn group_of(&self, instance: &InstanceId) -> Answer {
        loop {
            let (answer, mut answered) = oneshot::channel();
            lock(&self.questions).push(Question { instance: instance.clone(), answer });
            loop {
                tokio::select! {
                    biased;
                    answer = &mut answered => match answer {
                        Ok(answer) => return answer,
                        // It was among the questions of somebody who gave up.
                        Err(_) => break,
                    },
                    gathered = self.gather() => self.ask(gathered).await,
                }
            }
        }
    }

    /// The questions that are the next call's, when its turn has come. The longest unanswered come first.
    async fn gather(&self) -> Vec<Question> {
        let _gathering = self.gathering.lock().await;
        self.aws.pacer.pause(GATHERING).await;
        self.aws.turn().await;
        let mut questions = lock(&self.questions);
        questions.retain(|question| !question.answer.is_closed());
        let gathered = INSTANCES_A_CALL_MAX.min(questions.len());
        questions.drain(..gathered).collect()
    }

    async fn ask(&self, questions: Vec<Question>) {
        if questions.is_empty() {
            return self.aws.pacer.give_back();
        }
        let instances: Vec<&InstanceId> =
            questions.iter().map(|question| &question.instance).collect();
        let found = self.aws.groups_of(&instances).await;
        for Question { instance, answer } in questions {
            let found = found.as_ref().map(|found| found.get(&instance).cloned());
            // Who has given up by now is not told.
            let _ = answer.send(found.map_err(CallError::clone));
        }
    }
}
