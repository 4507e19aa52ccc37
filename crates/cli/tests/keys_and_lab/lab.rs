//! What `lab init` makes, and that it overwrites nothing.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use x509_parser::prelude::{FromDer as _, GeneralName, Pem, X509Certificate};

use crate::place::{Place, stderr, text_of};

#[test]
fn a_lab_has_all_that_a_server_needs_and_is_closed_where_it_must_be() {
    let place = Place::new();
    let made = place.json(&["lab", "init", "ops"]);
    let key = format!("ops/keys/{}.key", text_of(&made, "key_id"));
    let mut expected = vec![
        ("ops/ca".to_owned(), 0o700),
        ("ops/ca/ca.key".to_owned(), 0o600),
        ("ops/ca/ca.crt".to_owned(), 0o644),
        ("ops/certs".to_owned(), 0o755),
        ("ops/certs/ca.crt".to_owned(), 0o644),
        ("ops/certs/server.crt".to_owned(), 0o644),
        ("ops/certs/server.key".to_owned(), 0o600),
        ("ops/certs/policy.toml".to_owned(), 0o644),
        ("ops/data".to_owned(), 0o700),
        ("ops/keys".to_owned(), 0o700),
        (key, 0o600),
    ];
    for role in ["submitter", "auditor", "operator"] {
        for (name, mode) in [
            ("client.key", 0o600),
            ("client.crt", 0o644),
            ("ca.crt", 0o644),
        ] {
            expected.push((format!("ops/clients/{role}/{name}"), mode));
        }
    }
    for (name, mode) in expected {
        let found = place.mode(&name);
        // A stricter umask than usual may take more away.
        assert!(
            found & !mode == 0 && found & 0o700 == mode & 0o700,
            "{name}: {found:o}"
        );
    }
    for file in [
        "ca/ca.key",
        "certs/server.key",
        "clients/auditor/client.key",
    ] {
        let pem = fs::read_to_string(place.path("ops").join(file)).expect("read");
        assert!(
            pem.starts_with("-----BEGIN PRIVATE KEY-----"),
            "{file}: PKCS#8"
        );
    }
}

#[test]
fn a_labs_certificates_say_whose_they_are_and_what_for() {
    let place = Place::new();
    let names = ["--san", "evidenceos.example.org", "--san", "192.0.2.7"];
    place.text(&[&["lab", "init", "ops"], &names[..]].concat());

    let ca = Certificate::read(&place.path("ops/ca/ca.crt"));
    assert!(ca.with(|ca| ca.is_ca()));
    let server = Certificate::read(&place.path("ops/certs/server.crt"));
    let names = server.names();
    for name in [
        "localhost",
        "evidenceos",
        "evidenceos.example.org",
        "127.0.0.1",
        "::1",
        "192.0.2.7",
    ] {
        assert!(
            names.iter().any(|found| found == name),
            "{name} in {names:?}"
        );
    }
    assert_eq!(server.purposes(), (true, false));
    for role in ["submitter", "auditor", "operator"] {
        let client = Certificate::read(&place.path(&format!("ops/clients/{role}/client.crt")));
        assert_eq!(
            client.names(),
            [format!("spiffe://evidenceos.lab/{role}/lab")]
        );
        assert_eq!(client.purposes(), (false, true));
    }
    for certificate in [&ca, &server] {
        let (hours, issuer) = certificate.with(|certificate| {
            let validity = certificate.validity();
            let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
            (seconds / 3_600, certificate.issuer().to_string())
        });
        assert_eq!(hours, 398 * 24 + 1, "398 days, and an hour before now");
        assert!(issuer.starts_with("CN=EvidenceOS lab CA "), "{issuer}");
    }
}

/// A certificate in a file.
struct Certificate(Vec<u8>);

impl Certificate {
    fn read(path: &Path) -> Self {
        let file = fs::read(path).expect("a certificate");
        let pem = Pem::iter_from_buffer(&file)
            .next()
            .expect("one")
            .expect("PEM");
        Self(pem.contents)
    }

    fn with<T>(&self, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
        look(&X509Certificate::from_der(&self.0).expect("X.509").1)
    }

    fn names(&self) -> Vec<String> {
        self.with(|certificate| {
            let names = certificate
                .subject_alternative_name()
                .expect("once")
                .expect("there");
            names.value.general_names.iter().map(name).collect()
        })
    }

    /// Whether it is for servers, and for clients.
    fn purposes(&self) -> (bool, bool) {
        self.with(|certificate| {
            let usage = certificate
                .extended_key_usage()
                .expect("once")
                .expect("there");
            (usage.value.server_auth, usage.value.client_auth)
        })
    }
}

fn name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(text) | GeneralName::URI(text) => (*text).to_owned(),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => std::net::Ipv4Addr::from(v4).to_string(),
            Err(_) => {
                let v6 = <[u8; 16]>::try_from(*bytes).expect("an address");
                std::net::Ipv6Addr::from(v6).to_string()
            }
        },
        other => panic!("an unexpected name: {other:?}"),
    }
}

#[test]
fn a_lab_overwrites_nothing() {
    let place = Place::new();
    place.text(&["lab", "init", "ops"]);
    let before = place.files("ops");
    place.fails(&["lab", "init", "ops"], 1, "ops/certs/server.key");
    assert_eq!(place.files("ops"), before);

    fs::create_dir_all(place.path("other/data")).expect("made");
    fs::write(place.path("other/data/labels.csv"), "1").expect("written");
    place.fails(&["lab", "init", "other"], 1, "other/data/labels.csv");
    assert_eq!(place.files("other").len(), 1, "it looks before it writes");
}

#[test]
fn a_lab_fills_and_closes_empty_directories_that_are_there() {
    let place = Place::new();
    for name in ["ops/keys", "ops/ca", "ops/data"] {
        fs::create_dir_all(place.path(name)).expect("made");
        fs::write(place.path(name).join(".gitkeep"), "").expect("written");
        // As a checkout under the umask 002 leaves it.
        place.set_mode(name, 0o775);
    }
    place.text(&["lab", "init", "ops"]);
    for name in ["ops/keys", "ops/ca", "ops/data"] {
        assert_eq!(place.mode(name), 0o700, "{name}");
    }
    place.text(&["keys", "list", "--key-dir", "ops/keys"]);
}

#[test]
fn a_labs_wrong_name_is_refused_before_anything_is_made() {
    let place = Place::new();
    for name in ["a b", "[::1]", "https://x", "x:443", ""] {
        place.fails(&["lab", "init", "ops", "--san", name], 2, "--san");
    }
    place.fails(&["lab", "init", "ops", "--days", "0"], 2, "--days");
    assert!(!place.path("ops").exists());
}

#[test]
fn only_root_gives_a_lab_to_whoever_called_sudo() {
    let place = Place::new();
    let mut command = place.command(&["lab", "init", "ops"]);
    command.env("SUDO_UID", "4711").env("SUDO_GID", "4712");
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    let us = rustix::process::geteuid().as_raw();
    let owner = if us == 0 { 4711 } else { us };
    let directories = ["ops", "ops/keys", "ops/data", "ops/clients/auditor"];
    let files = place.files("ops").into_keys();
    for path in directories
        .map(|name| place.path(name))
        .into_iter()
        .chain(files)
    {
        let found = fs::metadata(&path).expect("there").uid();
        assert_eq!(found, owner, "{}", path.display());
    }
}

#[test]
fn in_a_compose_project_it_says_as_whom_the_container_runs() {
    let place = Place::new();
    place.text(&["lab", "init", "elsewhere/ops"]);
    assert!(
        !place.path("elsewhere/.env").exists(),
        "no project is there"
    );

    fs::write(place.path("docker-compose.yml"), "services: {}\n").expect("written");
    // As Docker leaves it where the stack was started before there were materials.
    fs::create_dir_all(place.path("ops/data/keys")).expect("made");
    fs::write(place.path(".env"), "EVIDENCEOS_GID=7\nOTHER=1").expect("written");
    let text = place.text(&["lab", "init", "ops"]);
    assert!(text.contains("docker compose up"), "{text}");
    let uid = fs::metadata(place.path("ops/keys")).expect("there").uid();
    let environment = || fs::read_to_string(place.path(".env")).expect("read");
    let expected = format!(
        "EVIDENCEOS_GID=7\nOTHER=1\nEVIDENCEOS_UID={uid}\nEVIDENCEOS_AUTH_POLICY=/certs/policy.toml\n"
    );
    assert_eq!(environment(), expected);
    place.text(&["lab", "init", "more"]);
    assert_eq!(environment(), expected, "nothing is said twice");
}
