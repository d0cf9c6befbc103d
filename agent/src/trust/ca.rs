//! The data-plane CA: root key in `<store>/keys/`, root certificate in `<store>/trust/`, both
//! written once and never over. Issues to nodes that are attested, and the account agent's own
//! server certificate.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use outstation_protocol::ids::{Digest, GroupName, InstanceId, TenantId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::spiffe::NodeId;
use crate::store::{AccountStore, OBJECT_BYTES_MAX, StoreError};
use outstation_sts::Attested;

/// The name under which nodes and callers know the account agent.
pub const SERVER_NAME: &str = "account-agent.outstation";
/// From start to end, backdating included.
pub const NODE_CERTIFICATE_SECS: u64 = 3600;
/// Certificates start a little earlier, for clocks that are behind.
const BACKDATED_SECS: u64 = 120;
const ROOT_YEARS: u64 = 10;
const KEY: &str = "keys/root.key";
const ROOT: &str = "trust/root.pem";
/// An honest request with a P-256 key has some 250 bytes.
pub const CSR_BYTES_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cannot {action} {path}")]
    Store { action: &'static str, path: String, source: StoreError },
    #[error("{path} is not {what}")]
    Damaged { path: String, what: &'static str },
    #[error("{root} has no key beside it: {key} is missing")]
    KeyMissing { root: String, key: String },
    #[error("{root} was not made for the key in {key}")]
    Mismatch { root: String, key: String },
    #[error("a certificate could not be made")]
    Make(#[source] rcgen::Error),
}

/// A PKCS#10 request whose signature shows that its sender holds the key. Only the public key is
/// taken from it; names and usages are the issuer's.
pub struct Csr {
    digest: Digest,
    parsed: CertificateSigningRequestParams,
}

#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    #[error("the certificate request has {bytes} bytes, more than {CSR_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("the certificate request is not a signed PKCS#10 request")]
    Parse(#[source] rcgen::Error),
    #[error("the certificate request's key is not of a kind that is accepted (P-256, Ed25519)")]
    KeyKind,
}

impl Csr {
    pub fn from_der(der: &[u8]) -> Result<Csr, CsrError> {
        if der.len() > CSR_BYTES_MAX {
            return Err(CsrError::TooLarge { bytes: der.len() });
        }
        let request = CertificateSigningRequestDer::from(der);
        let parsed =
            CertificateSigningRequestParams::from_der(&request).map_err(CsrError::Parse)?;
        let kind = parsed.public_key.algorithm();
        if ![&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519].contains(&kind) {
            return Err(CsrError::KeyKind);
        }
        Ok(Csr { digest: Digest::of(der), parsed })
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// Why no certificate was issued, although STS spoke for the caller.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("the evidence was given for another certificate request")]
    OtherCsr,
    #[error("the evidence was given for another tenant")]
    OtherTenant,
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// The key and chain of a server, ready for rustls (DER) or tonic (PEM).
pub struct ServerIdentity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub chain_pem: String,
    pub key_pem: String,
    pub not_after_unix_secs: u64,
}

pub struct DataPlaneCa {
    tenant: TenantId,
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl DataPlaneCa {
    /// Loads the CA of this account store, or makes it if the store has none. Of two account
    /// agents that start at once, both end with the same one.
    pub fn open_or_create(
        store: &AccountStore,
        tenant: &TenantId,
        now_unix_secs: u64,
    ) -> Result<DataPlaneCa, CaError> {
        let (key_name, root_name) = (store.name(KEY), store.name(ROOT));
        if read(store, ROOT)?.is_some() && read(store, KEY)?.is_none() {
            return Err(CaError::KeyMissing { root: root_name, key: key_name });
        }
        let key_pem = load_or_create(store, KEY, || {
            Ok(KeyPair::generate().map_err(CaError::Make)?.serialize_pem())
        })?;
        let damaged_key = || CaError::Damaged { path: key_name.clone(), what: "a private key" };
        let key = KeyPair::from_pem(&key_pem).map_err(|_| damaged_key())?;
        let root_pem = load_or_create(store, ROOT, || {
            let root = root_params(tenant, now_unix_secs).self_signed(&key);
            Ok(root.map_err(CaError::Make)?.pem())
        })?;
        let damaged = || CaError::Damaged { path: root_name.clone(), what: "a root certificate" };
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes()).map_err(|_| damaged())?;
        let (_, parsed) = X509Certificate::from_der(&root).map_err(|_| damaged())?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(CaError::Mismatch { root: root_name, key: key_name });
        }
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(|_| damaged())?;
        Ok(DataPlaneCa { tenant: tenant.clone(), root, issuer })
    }

    /// From which keys of other purposes may be derived; as secret as the CA's key, for it is that.
    pub fn secret(&self) -> Vec<u8> {
        self.issuer.key().serialize_der()
    }

    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// A node's certificate: good for both ends, for an hour. `instance` and `group` are what
    /// the account agent itself knows of the caller that STS has named.
    pub(super) fn issue_node(
        &self,
        who: &Attested,
        instance: &InstanceId,
        group: &GroupName,
        csr: &Csr,
        now_unix_secs: u64,
    ) -> Result<(NodeId, CertificateDer<'static>), IssueError> {
        if who.csr() != csr.digest() {
            return Err(IssueError::OtherCsr);
        }
        if who.audience().tenant != self.tenant {
            return Err(IssueError::OtherTenant);
        }
        let id = NodeId {
            tenant: self.tenant.clone(),
            account: who.caller().account.clone(),
            group: group.clone(),
            instance: instance.clone(),
        };
        let not_after = now_unix_secs + NODE_CERTIFICATE_SECS - BACKDATED_SECS;
        let mut params = leaf_params(instance.as_str(), now_unix_secs, not_after);
        let uri = id.to_string().try_into().map_err(CaError::Make)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate =
            params.signed_by(&csr.parsed.public_key, &self.issuer).map_err(CaError::Make)?;
        Ok((id, certificate.der().clone()))
    }

    /// The account agent's own certificate, for its node link and its callers.
    pub fn issue_server(
        &self,
        valid: Duration,
        now_unix_secs: u64,
    ) -> Result<ServerIdentity, CaError> {
        let key = KeyPair::generate().map_err(CaError::Make)?;
        let not_after_unix_secs = now_unix_secs + valid.as_secs();
        let mut params = leaf_params(SERVER_NAME, now_unix_secs, not_after_unix_secs);
        params.subject_alt_names = vec![
            SanType::DnsName(SERVER_NAME.try_into().map_err(CaError::Make)?),
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(CaError::Make)?;
        Ok(ServerIdentity {
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            not_after_unix_secs,
        })
    }
}

fn root_params(tenant: &TenantId, now_unix_secs: u64) -> CertificateParams {
    let not_after = now_unix_secs + ROOT_YEARS * 365 * 86_400;
    let mut params = leaf_params(&format!("{tenant} data plane root"), now_unix_secs, not_after);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    params
}

fn leaf_params(name: &str, now_unix_secs: u64, not_after_unix_secs: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date(now_unix_secs.saturating_sub(BACKDATED_SECS));
    params.not_after = date(not_after_unix_secs);
    params.serial_number = Some(SerialNumber::from(rand::random::<[u8; 16]>().to_vec()));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "outstation");
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn date(unix_secs: u64) -> OffsetDateTime {
    let seconds = i64::try_from(unix_secs).unwrap_or(i64::MAX);
    // Beyond the year 9999 X.509 has no dates either.
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn load_or_create(
    store: &AccountStore,
    key: &str,
    make: impl FnOnce() -> Result<String, CaError>,
) -> Result<String, CaError> {
    if let Some(text) = read(store, key)? {
        return Ok(text);
    }
    let text = make()?;
    let failed = |action, source| CaError::Store { action, path: store.name(key), source };
    match store.create(key, text.as_bytes()) {
        Ok(_) => Ok(text),
        // Another account agent was first: its word counts.
        Err(StoreError::Exists) => {
            read(store, key)?.ok_or_else(|| failed("read", StoreError::Moved))
        }
        Err(source) => Err(failed("write", source)),
    }
}

/// What is no text is nothing that we have written.
fn read(store: &AccountStore, key: &str) -> Result<Option<String>, CaError> {
    let failed = |source| CaError::Store { action: "read", path: store.name(key), source };
    let Some(found) = store.get(key, OBJECT_BYTES_MAX).map_err(failed)? else { return Ok(None) };
    let text = String::from_utf8(found.bytes);
    text.map(Some).map_err(|_| CaError::Damaged { path: store.name(key), what: "a text" })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    const NOW: u64 = 1_795_348_800;

    fn tenant() -> TenantId {
        TenantId::try_from("dev").expect("valid")
    }

    fn open(store: &tempfile::TempDir, now_unix_secs: u64) -> Result<DataPlaneCa, CaError> {
        let store = AccountStore::folder(store.path());
        DataPlaneCa::open_or_create(&store, &tenant(), now_unix_secs)
    }

    #[test]
    fn a_store_keeps_its_root() {
        let store = tempfile::tempdir().expect("a folder");
        let first = open(&store, NOW).expect("makes one");
        let again = open(&store, NOW + 9).expect("loads it");
        assert_eq!(first.root(), again.root());
        let mode = fs::metadata(store.path().join("keys/root.key")).expect("there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }

    #[test]
    fn a_crash_between_key_and_root_heals() {
        let store = tempfile::tempdir().expect("a folder");
        open(&store, NOW).expect("makes one");
        fs::remove_file(store.path().join("trust/root.pem")).expect("it is there");
        open(&store, NOW).expect("heals");
    }

    #[test]
    fn a_damaged_store_is_an_error_and_never_overwritten() {
        type Damage = fn(&Path);
        let cases: [(Damage, &str); 4] = [
            (|s| fs::remove_file(s.join("keys/root.key")).expect("there"), "has no key beside it"),
            (|s| fs::write(s.join("keys/root.key"), "x").expect("there"), "not a private key"),
            (|s| fs::write(s.join("trust/root.pem"), "x").expect("there"), "not a root"),
            (
                |s| {
                    let other = KeyPair::generate().expect("a key");
                    fs::write(s.join("keys/root.key"), other.serialize_pem()).expect("there");
                },
                "was not made for the key",
            ),
        ];
        for (damage, wanted) in cases {
            let store = tempfile::tempdir().expect("a folder");
            open(&store, NOW).expect("makes one");
            damage(store.path());
            let root = fs::read(store.path().join("trust/root.pem")).expect("there");
            let error = open(&store, NOW).err().expect(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
            assert_eq!(fs::read(store.path().join("trust/root.pem")).expect("there"), root);
        }
    }

    #[test]
    fn a_request_must_be_signed_by_its_key() {
        let key = KeyPair::generate().expect("a key");
        let request = CertificateParams::default().serialize_request(&key).expect("a request");
        let der = request.der().to_vec();
        assert!(Csr::from_der(&der).is_ok());
        let mut tampered = der.clone();
        *tampered.last_mut().expect("not empty") ^= 1;
        assert!(matches!(Csr::from_der(&tampered), Err(CsrError::Parse(_))));
        assert!(matches!(Csr::from_der(b"no"), Err(CsrError::Parse(_))));
        assert!(matches!(Csr::from_der(&[0; 5000]), Err(CsrError::TooLarge { bytes: 5000 })));
    }
}
