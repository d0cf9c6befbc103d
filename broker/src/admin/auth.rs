//! The bearer token of the admin API: a file that only the broker's user may read.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use outstation_protocol::Digest;
use rand::RngCore as _;
use subtle::ConstantTimeEq as _;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::files;

/// 128 bits in hexadecimal digits; the broker's own tokens have twice that.
const TOKEN_CHARS_MIN: usize = 32;

/// Lets calls pass that carry the token. Holds its hash only.
#[derive(Clone)]
pub struct BearerAuth {
    token: Digest,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error("cannot read or write the admin token {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("others may read the admin token {path}")]
    Open { path: PathBuf },
    #[error("the admin token in {path} is shorter than {TOKEN_CHARS_MIN} characters")]
    Short { path: PathBuf },
}

impl TokenFileError {
    pub fn hint(&self) -> String {
        match self {
            TokenFileError::File { .. } => "check [admin] token_file and its directory".into(),
            TokenFileError::Open { path } => format!("chmod 600 {}", path.display()),
            TokenFileError::Short { path } => {
                format!("remove {}; the next start makes a good one", path.display())
            }
        }
    }
}

impl BearerAuth {
    pub fn new(token: &str) -> BearerAuth {
        BearerAuth { token: Digest::of(token.as_bytes()) }
    }

    /// Reads the token; makes one if there is no such file.
    pub fn from_file(path: &Path) -> Result<BearerAuth, TokenFileError> {
        let failed = |source| TokenFileError::File { path: path.to_owned(), source };
        let Some(text) = files::read_if_present(path).map_err(failed)? else {
            let mut token = [0; 32];
            rand::rng().fill_bytes(&mut token);
            let token = hex::encode(token);
            files::write_durably(path, format!("{token}\n").as_bytes(), files::PRIVATE)
                .map_err(failed)?;
            return Ok(BearerAuth::new(&token));
        };
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(TokenFileError::Open { path: path.to_owned() });
        }
        let token = text.trim();
        if token.len() < TOKEN_CHARS_MIN {
            return Err(TokenFileError::Short { path: path.to_owned() });
        }
        Ok(BearerAuth::new(token))
    }

    /// Compares hashes, in constant time: neither length nor prefix can be measured.
    fn allows(&self, authorization: Option<&str>) -> bool {
        let Some((scheme, token)) = authorization.and_then(|value| value.split_once(' ')) else {
            return false;
        };
        let offered = Digest::of(token.as_bytes());
        scheme.eq_ignore_ascii_case("bearer")
            && bool::from(self.token.as_bytes().ct_eq(offered.as_bytes()))
    }
}

impl Interceptor for BearerAuth {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let authorization = request.metadata().get("authorization");
        if self.allows(authorization.and_then(|value| value.to_str().ok())) {
            Ok(request)
        } else {
            Err(Status::unauthenticated("this call needs the admin token as a bearer token"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_passes() {
        let auth = BearerAuth::new("0123456789abcdef");
        for (authorization, wanted) in [
            (Some("Bearer 0123456789abcdef"), true),
            (Some("bearer 0123456789abcdef"), true),
            (None, false),
            (Some(""), false),
            (Some("0123456789abcdef"), false),
            (Some("Bearer"), false),
            (Some("Bearer "), false),
            (Some("Bearer 0123456789abcde"), false),
            (Some("Bearer 0123456789abcdef "), false),
            (Some("Basic 0123456789abcdef"), false),
        ] {
            assert_eq!(auth.allows(authorization), wanted, "{authorization:?}");
        }
    }

    #[test]
    fn the_token_file_is_made_private_and_must_stay_so() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("admin.token");
        let made = BearerAuth::from_file(&path).expect("makes a token");
        let token = fs::read_to_string(&path).expect("read the token");
        assert_eq!(token.trim().len(), 64);
        assert!(made.allows(Some(&format!("Bearer {}", token.trim()))));
        let again = BearerAuth::from_file(&path).expect("reads the token");
        assert_eq!(again.token, made.token);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(BearerAuth::from_file(&path), Err(TokenFileError::Open { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::write(&path, "short\n").expect("write");
        assert!(matches!(BearerAuth::from_file(&path), Err(TokenFileError::Short { .. })));
    }
}
