//! Certificates made for a test, and the files of a listener.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use evidenceos_access::{PeerCertificate, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// A CA.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
    pub der: CertificateDer<'static>,
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Leaf {
    pub cert_pem: String,
    pub key_pem: String,
}

/// What a certificate says.
pub struct Ask {
    pub uris: Vec<&'static str>,
    pub dns: Vec<&'static str>,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    pub expired: bool,
    /// Its last second, in Unix time, if it is neither expired nor good for long.
    pub not_after_unix: Option<u64>,
    /// What it is called, which identifies nobody.
    pub common_name: &'static str,
    /// DER of a subject alternative name that no honest tool writes, in place of `uris` and `dns`.
    pub raw_names: Option<Vec<u8>>,
}

/// A client certificate of one URI, as it should be.
pub fn client(uri: &'static str) -> Ask {
    Ask {
        uris: vec![uri],
        dns: vec![],
        usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
        expired: false,
        not_after_unix: None,
        // Looks like power, and is nothing.
        common_name: "operator",
        raw_names: None,
    }
}

/// A server certificate for `localhost`.
pub fn server() -> Ask {
    Ask {
        uris: vec![],
        dns: vec!["localhost"],
        usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
        expired: false,
        not_after_unix: None,
        // Looks like power, and is nothing.
        common_name: "operator",
        raw_names: None,
    }
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a CA");
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    pub fn issue(&self, ask: &Ask) -> Leaf {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, ask.common_name);
        if let Some(names) = &ask.raw_names {
            const SUBJECT_ALTERNATIVE_NAME: [u64; 4] = [2, 5, 29, 17];
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(
                    &SUBJECT_ALTERNATIVE_NAME,
                    names.clone(),
                ));
        }
        for dns in &ask.dns {
            let name = (*dns).try_into().expect("ASCII");
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        for uri in &ask.uris {
            let name = (*uri).try_into().expect("ASCII");
            params.subject_alt_names.push(SanType::URI(name));
        }
        params.extended_key_usages.clone_from(&ask.usages);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = match ask.not_after_unix {
            Some(seconds) => date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds),
            None => date_time_ymd(if ask.expired { 2021 } else { 2999 }, 1, 1),
        };
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a leaf");
        Leaf {
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }
}

impl Ca {
    /// An authority between this one and clients, and its certificate.
    pub fn intermediate(&self, name: &str) -> (Self, Leaf) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a CA");
        let leaf = Leaf {
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        };
        let authority = Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        };
        (authority, leaf)
    }

    /// A list of revoked certificates, PEM, that is to be replaced by the first day of a year.
    pub fn crl(&self, revoked: &[&Leaf], next_update_year: i32) -> String {
        let revoked_certs = revoked.iter().map(|leaf| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&leaf.serial()),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(next_update_year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("a list");
        list.pem().expect("PEM")
    }
}

impl Leaf {
    /// Its number, without leading zero bytes.
    pub fn serial(&self) -> Vec<u8> {
        PeerCertificate::read(&self.der()).expect("readable").serial
    }

    /// Itself, and what follows it in its PEM.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        let chain = CertificateDer::pem_slice_iter(self.cert_pem.as_bytes());
        chain.collect::<Result<_, _>>().expect("PEM")
    }

    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).expect("PEM")
    }

    pub fn der(&self) -> Vec<u8> {
        self.chain()[0].to_vec()
    }
}

/// The names of the files in a directory.
pub fn files(directory: &Path, with_ca: bool) -> TlsFiles {
    TlsFiles {
        cert: directory.join("server.crt"),
        key: directory.join("server.key"),
        client_ca: with_ca.then(|| directory.join("ca.crt")),
        client_crls: Vec::new(),
    }
}

/// Writes a whole set.
pub fn write(directory: &Path, leaf: &Leaf, client_ca: &Ca) {
    write_file(&directory.join("server.crt"), &leaf.cert_pem, 0o644);
    write_file(&directory.join("server.key"), &leaf.key_pem, 0o440);
    write_file(&directory.join("ca.crt"), &client_ca.pem, 0o644);
}

/// Puts a file in place under a new inode, as tools do.
pub fn write_file(path: &Path, content: &str, mode: u32) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, content).expect("written");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).expect("a mode");
    fs::rename(&fresh, path).expect("renamed");
}

/// A directory as Kubernetes mounts a secret: names are links through `..data`.
pub struct SecretMount {
    root: PathBuf,
}

impl SecretMount {
    pub fn new(root: &Path) -> Self {
        for name in ["server.crt", "server.key", "ca.crt"] {
            symlink(Path::new("..data").join(name), root.join(name)).expect("a link");
        }
        Self {
            root: root.to_owned(),
        }
    }

    /// Exchanges the whole set by one rename.
    pub fn update(&self, version: &str, leaf: &Leaf, client_ca: &Ca) {
        let directory = self.root.join(version);
        fs::create_dir(&directory).expect("a directory");
        write(&directory, leaf, client_ca);
        let link = self.root.join("..data_tmp");
        symlink(version, &link).expect("a link");
        fs::rename(link, self.root.join("..data")).expect("renamed");
    }
}
