//! The broker's certificate authority: a root made on first start, a certificate for the broker
//! itself at every start, and one for each agent that the store's judges admitted.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use outstation_protocol::{Digest, TenantId};
use rand::RngCore as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKey,
    PublicKeyData as _, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::{Duration, OffsetDateTime};

use crate::files;
use crate::identity::AgentIdentity;
use crate::store::admitted::Admitted;

/// The name under which agents and the CLI know every broker.
pub const SERVER_NAME: &str = "broker.outstation";

const ROOT_LIFETIME: Duration = Duration::days(3650);
/// Made anew at every start, so its key is never on a disk.
const SERVER_LIFETIME: Duration = Duration::days(365);
pub const AGENT_LIFETIME: Duration = Duration::days(7);
/// Clocks differ: a new certificate has been valid for a moment already.
const BACKDATED: Duration = Duration::minutes(5);

/// A request for a P-256 key has about 250 bytes; extensions do not count for anything.
const CSR_BYTES_MAX: usize = 8 * 1024;

pub struct Ca {
    tenant: TenantId,
    root: CertificateDer<'static>,
    root_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// The broker's own certificate and key.
pub struct ServerIdentity {
    pub certificate: CertificateDer<'static>,
    pub certificate_pem: String,
    pub key: KeyPair,
}

/// A request whose signature shows that the asker holds the key. Only the key counts.
#[derive(Debug, Clone)]
pub struct Csr {
    public_key: PublicKey,
    key: Digest,
    digest: Digest,
}

/// A certificate as it goes to the agent.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub identity: AgentIdentity,
    pub serial: String,
    pub expires_at_unix_secs: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cannot read or write {path}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path} is there, its key {key} is not")]
    NoKey { path: PathBuf, key: PathBuf },
    #[error("{path} cannot be read as a PEM file")]
    Pem { path: PathBuf, source: rustls_pki_types::pem::Error },
    #[error("{path} and {key} do not belong together, or are damaged")]
    Mismatch { path: PathBuf, key: PathBuf },
    #[error("a certificate could not be made")]
    Make(#[source] rcgen::Error),
    #[error("the request is for another key than the one that was admitted")]
    OtherKey,
}

#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    #[error("the certificate request has {bytes} bytes, more than {CSR_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("the certificate request is damaged, or not signed by the key that it names")]
    Invalid(#[source] rcgen::Error),
    #[error(
        "the certificate request is for a key that is neither ECDSA (P-256, P-384) nor Ed25519"
    )]
    Algorithm,
}

impl CaError {
    pub fn hint(&self) -> String {
        match self {
            CaError::File { .. } => "check the owner and the free space of `state`".into(),
            CaError::NoKey { .. } | CaError::Pem { .. } | CaError::Mismatch { .. } => {
                "restore both files from a backup; a new root would lock out every agent".into()
            }
            CaError::Make(_) => "report this, with the release".into(),
            CaError::OtherKey => "ask again with the key that was admitted".into(),
        }
    }
}

impl Csr {
    /// Reads a PKCS#10 request in DER and checks its signature: proof of possession.
    pub fn verify(der: &[u8]) -> Result<Csr, CsrError> {
        if der.len() > CSR_BYTES_MAX {
            return Err(CsrError::TooLarge { bytes: der.len() });
        }
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
                .map_err(CsrError::Invalid)?;
        let allowed =
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        if !allowed.contains(&request.public_key.algorithm()) {
            return Err(CsrError::Algorithm);
        }
        let key = Digest::of(&request.public_key.subject_public_key_info());
        Ok(Csr { public_key: request.public_key, key, digest: Digest::of(der) })
    }

    /// SHA-256 of the request as it came, over which evidence is signed.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub fn key(&self) -> &Digest {
        &self.key
    }
}

impl Ca {
    /// Loads the root from `state`, or makes one there. `root.pem` is on disk afterwards.
    pub fn open(state: &Path, tenant: TenantId, now: OffsetDateTime) -> Result<Ca, CaError> {
        files::ensure_private_dir(state)
            .map_err(|source| CaError::File { path: state.to_owned(), source })?;
        let path = state.join("root.pem");
        let key_path = state.join("root.key");
        let pem = read(&path)?;
        let key = match (read(&key_path)?, &pem) {
            (Some(pem), _) => KeyPair::from_pem(&pem)
                .map_err(|_| CaError::Mismatch { path: path.clone(), key: key_path.clone() })?,
            (None, Some(_)) => {
                return Err(CaError::NoKey { path, key: key_path });
            }
            (None, None) => {
                // The key first: a crash in between leaves a key without certificate, from
                // which the next start goes on.
                let key =
                    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(CaError::Make)?;
                write(&key_path, key.serialize_pem().as_bytes(), files::PRIVATE)?;
                key
            }
        };
        let root_pem = match pem {
            Some(pem) => pem,
            None => {
                let made = root_params(&tenant, now).self_signed(&key).map_err(CaError::Make)?;
                write(&path, made.pem().as_bytes(), files::PUBLIC)?;
                made.pem()
            }
        };
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes())
            .map_err(|source| CaError::Pem { path: path.clone(), source })?;
        let mismatch = || CaError::Mismatch { path: path.clone(), key: key_path.clone() };
        let (_, parsed) = x509_parser::parse_x509_certificate(&root).map_err(|_| mismatch())?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(mismatch());
        }
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(CaError::Make)?;
        Ok(Ca { tenant, root, root_pem, issuer })
    }

    /// From which keys of other purposes may be derived; as secret as the CA's key, for it is that.
    pub fn secret(&self) -> Vec<u8> {
        self.issuer.key().serialize_der()
    }

    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// A fresh key and certificate for the broker itself.
    pub fn server(&self, now: OffsetDateTime) -> Result<ServerIdentity, CaError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(CaError::Make)?;
        let mut params = leaf_params(SERVER_NAME, now, SERVER_LIFETIME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![
            SanType::DnsName(SERVER_NAME.try_into().map_err(CaError::Make)?),
            SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
            SanType::IpAddress(Ipv6Addr::LOCALHOST.into()),
        ];
        let certificate = params.signed_by(&key, &self.issuer).map_err(CaError::Make)?;
        Ok(ServerIdentity {
            certificate_pem: certificate.pem(),
            certificate: certificate.der().clone(),
            key,
        })
    }

    /// A certificate for who was admitted. Nothing but the public key is taken from the request.
    pub fn issue(&self, who: &Admitted, csr: &Csr, now: OffsetDateTime) -> Result<Issued, CaError> {
        if who.key() != csr.key() {
            return Err(CaError::OtherKey);
        }
        let identity = AgentIdentity {
            tenant: self.tenant.clone(),
            account: who.data_plane().account.clone(),
            agent: who.agent().clone(),
        };
        let mut params = leaf_params(who.agent().as_str(), now, AGENT_LIFETIME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let uri = identity.to_string().try_into().map_err(CaError::Make)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let serial = params.serial_number.as_ref().map_or_else(String::new, ToString::to_string);
        let expires_at = params.not_after.unix_timestamp();
        let certificate = params.signed_by(&csr.public_key, &self.issuer).map_err(CaError::Make)?;
        Ok(Issued {
            chain: vec![certificate.der().clone()],
            identity,
            serial,
            expires_at_unix_secs: u64::try_from(expires_at).unwrap_or(0),
        })
    }
}

fn root_params(tenant: &TenantId, now: OffsetDateTime) -> CertificateParams {
    let mut params =
        leaf_params(&format!("Outstation broker root of {tenant}"), now, ROOT_LIFETIME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(name: &str, now: OffsetDateTime, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = now - BACKDATED;
    params.not_after = now + lifetime;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial_number());
    params
}

/// 16 random bytes, positive (RFC 5280, 4.1.2.2). rcgen's own default is a hash of the key, the
/// same for every certificate of that key.
fn serial_number() -> SerialNumber {
    let mut serial = [0; 16];
    rand::rng().fill_bytes(&mut serial);
    serial[0] = (serial[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&serial)
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    files::read_if_present(path).map_err(|source| CaError::File { path: path.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    files::write_durably(path, bytes, mode)
        .map_err(|source| CaError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn open(state: &Path) -> Result<Ca, CaError> {
        Ca::open(state, TenantId::try_from("dev").expect("valid"), OffsetDateTime::UNIX_EPOCH)
    }

    fn reason(result: Result<Ca, CaError>) -> String {
        result.err().map_or_else(|| "opened".into(), |error| error.to_string())
    }

    #[test]
    fn the_root_is_made_once_and_never_replaced_by_itself() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state = dir.path().join("broker");
        let root = open(&state).expect("a first start").root_pem().to_owned();
        assert_eq!(open(&state).expect("a second start").root_pem(), root);
        for (file, mode) in [("", 0o700), ("root.key", 0o600), ("root.pem", 0o644)] {
            let found = fs::metadata(state.join(file)).expect("metadata").permissions().mode();
            assert_eq!(found & 0o777, mode, "{file:?}");
        }

        let key = fs::read(state.join("root.key")).expect("read the key");
        fs::remove_file(state.join("root.key")).expect("lose the key");
        assert!(reason(open(&state)).contains("is not"), "a lost key is no reason for a new root");
        fs::write(state.join("root.key"), KeyPair::generate().expect("a key").serialize_pem())
            .expect("another key");
        assert!(reason(open(&state)).contains("do not belong together"));

        // As after a crash between the two files.
        fs::write(state.join("root.key"), key).expect("restore the key");
        fs::remove_file(state.join("root.pem")).expect("lose the certificate");
        open(&state).expect("goes on from the key");
    }

    #[test]
    fn a_request_must_be_signed_by_its_own_key() {
        let key = KeyPair::generate().expect("a key");
        let request = CertificateParams::default().serialize_request(&key).expect("a request");
        let good = request.der().to_vec();
        let csr = Csr::verify(&good).expect("a good request");
        assert_eq!(*csr.key(), Digest::of(&key.subject_public_key_info()));

        let mut forged = good.clone();
        *forged.last_mut().expect("not empty") ^= 1;
        for (bad, wanted) in [
            (forged, "not signed by the key"),
            (b"nonsense".to_vec(), "damaged"),
            (vec![0; CSR_BYTES_MAX + 1], "more than"),
        ] {
            let error = Csr::verify(&bad).expect_err(wanted);
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }
}
