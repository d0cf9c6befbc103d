//! What the simulated AWS answers instead of a result: AWS's code, status and fault, and a message worded like AWS's.

/// One refused call. Compare on `code`; messages are for people and imitate AWS where its wording is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct AwsError {
    pub code: Code,
    pub message: String,
}

/// The error codes that the simulated services know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    ValidationError,
    AlreadyExists,
    LimitExceeded,
    ResourceContention,
    ResourceInUse,
    ScalingActivityInProgress,
    InstanceRefreshInProgress,
    ActiveInstanceRefreshNotFound,
    IrreversibleInstanceRefresh,
    Throttling,
    ServiceUnavailable,
    InvalidNextToken,
    InvalidAction,
    AccessDenied,
    MissingAuthenticationToken,
    IncompleteSignature,
    InvalidClientTokenId,
    SignatureDoesNotMatch,
    ExpiredToken,
    /// Not an AWS code: a real parameter or value that this simulation refuses rather than ignores.
    NotSimulated,
}

impl Code {
    /// What the tests hold against botocore.
    pub const ALL: &'static [Code] = &[
        Code::ValidationError,
        Code::AlreadyExists,
        Code::LimitExceeded,
        Code::ResourceContention,
        Code::ResourceInUse,
        Code::ScalingActivityInProgress,
        Code::InstanceRefreshInProgress,
        Code::ActiveInstanceRefreshNotFound,
        Code::IrreversibleInstanceRefresh,
        Code::Throttling,
        Code::ServiceUnavailable,
        Code::InvalidNextToken,
        Code::InvalidAction,
        Code::AccessDenied,
        Code::MissingAuthenticationToken,
        Code::IncompleteSignature,
        Code::InvalidClientTokenId,
        Code::SignatureDoesNotMatch,
        Code::ExpiredToken,
        Code::NotSimulated,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Code::ValidationError => "ValidationError",
            Code::AlreadyExists => "AlreadyExists",
            Code::LimitExceeded => "LimitExceeded",
            Code::ResourceContention => "ResourceContention",
            Code::ResourceInUse => "ResourceInUse",
            Code::ScalingActivityInProgress => "ScalingActivityInProgress",
            Code::InstanceRefreshInProgress => "InstanceRefreshInProgress",
            Code::ActiveInstanceRefreshNotFound => "ActiveInstanceRefreshNotFound",
            Code::IrreversibleInstanceRefresh => "IrreversibleInstanceRefresh",
            Code::Throttling => "Throttling",
            Code::ServiceUnavailable => "ServiceUnavailable",
            Code::InvalidNextToken => "InvalidNextToken",
            Code::InvalidAction => "InvalidAction",
            Code::AccessDenied => "AccessDenied",
            Code::MissingAuthenticationToken => "MissingAuthenticationToken",
            Code::IncompleteSignature => "IncompleteSignature",
            Code::InvalidClientTokenId => "InvalidClientTokenId",
            Code::SignatureDoesNotMatch => "SignatureDoesNotMatch",
            Code::ExpiredToken => "ExpiredToken",
            Code::NotSimulated => "NotSimulated",
        }
    }

    pub fn http_status(self) -> u16 {
        match self {
            Code::ValidationError
            | Code::AlreadyExists
            | Code::LimitExceeded
            | Code::ResourceInUse
            | Code::ScalingActivityInProgress
            | Code::InstanceRefreshInProgress
            | Code::ActiveInstanceRefreshNotFound
            | Code::IrreversibleInstanceRefresh
            | Code::Throttling
            | Code::InvalidNextToken
            | Code::InvalidAction
            | Code::IncompleteSignature
            | Code::NotSimulated => 400,
            Code::AccessDenied
            | Code::MissingAuthenticationToken
            | Code::InvalidClientTokenId
            | Code::SignatureDoesNotMatch
            | Code::ExpiredToken => 403,
            Code::ResourceContention => 500,
            Code::ServiceUnavailable => 503,
        }
    }
}

impl AwsError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        AwsError { code, message: message.into() }
    }

    pub fn validation(message: impl Into<String>) -> Self {
        AwsError::new(Code::ValidationError, message)
    }

    pub fn not_simulated(message: impl Into<String>) -> Self {
        AwsError::new(Code::NotSimulated, message)
    }

    /// One constraint of the service's own model violated, worded as AWS's request validation does.
    pub fn constraint(value: &str, parameter: &str, constraint: &str) -> Self {
        let shown: String = value.chars().take(200).collect();
        AwsError::validation(format!(
            "1 validation error detected: Value '{shown}' at '{parameter}' failed to satisfy constraint: {constraint}"
        ))
    }
}
