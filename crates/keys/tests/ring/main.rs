//! The ring in real directories: who may read keys, how they come from mounts, which one signs.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use evidenceos_keys::{Directory, KeyError, KeyId, Ring, Secret, import, public_key, secrets};
use tempfile::TempDir;

fn scratch() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    chmod(directory.path(), 0o700);
    directory
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o7777
}

fn seed(byte: u8) -> Secret {
    Secret::new([byte; 32])
}

fn id(byte: u8) -> KeyId {
    KeyId::of(&public_key(&seed(byte)))
}

fn put(directory: &Path, byte: u8, mode: u32) -> PathBuf {
    let path = directory.join(format!("{}.key", id(byte)));
    fs::write(&path, seed(byte).as_slice()).expect("writable");
    chmod(&path, mode);
    path
}

fn refusal(directory: &Path) -> String {
    Ring::open(directory).expect_err("a bad ring").to_string()
}

#[test]
fn the_key_id_is_the_digest_of_the_public_key() {
    // RFC 8032, test 1, and the SHA-256 of its public key.
    let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let mut secret = Secret::default();
    hex::decode_to_slice(seed, secret.as_mut_slice()).expect("hex");
    assert_eq!(hex::encode(public_key(&secret)), public);
    assert_eq!(
        KeyId::of(&public_key(&secret)).to_string(),
        "21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9"
    );
}

#[test]
fn a_generated_key_is_found_again_and_closed_to_others() {
    let home = scratch();
    let path = home.path().join("keys");
    let made = Ring::open_or_create(&path)
        .and_then(|mut ring| ring.generate())
        .expect("writable");
    let ring = Ring::open(&path).expect("good");
    assert_eq!(ring.keys().keys().collect::<Vec<_>>(), [&made]);
    assert_eq!(ring.choose(None, None).expect("the only one"), made);
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&ring.file_of(made)), 0o600);
    assert_eq!(
        KeyId::of(&public_key(&ring.seed(made).expect("there"))),
        made
    );
}

#[test]
fn every_key_that_others_can_touch_is_refused_also_one_that_does_not_sign() {
    for mode in [0o640, 0o604, 0o660, 0o601, 0o620, 0o666, 0o777] {
        let home = scratch();
        put(home.path(), 1, 0o600);
        let open = put(home.path(), 2, mode);
        let message = refusal(home.path());
        for part in [
            open.to_str().expect("text"),
            &format!("{mode:04o}"),
            "0600",
            "chmod 600",
            &format!("uid {}", rustix::process::geteuid().as_raw()),
        ] {
            assert!(message.contains(part), "{message} names {part}");
        }
    }
    for mode in [0o600, 0o400] {
        let home = scratch();
        put(home.path(), 1, mode);
        assert_eq!(Ring::open(home.path()).expect("closed").keys().len(), 1);
    }
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    for (mode, good) in [
        (0o700, true),
        (0o755, true),
        (0o2750, true),
        (0o1700, true),
        (0o770, false),
        (0o707, false),
        (0o3777, false),
    ] {
        let home = scratch();
        put(home.path(), 1, 0o600);
        chmod(home.path(), mode);
        assert_eq!(Ring::open(home.path()).is_ok(), good, "{mode:o}");
    }
}

#[test]
fn what_is_no_key_is_said_so() {
    let name = format!("{}.key", id(1));
    type Make = fn(&Path);
    let cases: [(&str, Make); 4] = [
        ("32 bytes", |path| {
            fs::write(path, [1; 31]).expect("writable");
        }),
        ("32 bytes", |path| {
            fs::write(path, [1; 33]).expect("writable");
        }),
        ("32 bytes", |path| fs::create_dir(path).expect("writable")),
        ("does not match its content", |path| {
            fs::write(path, [7; 32]).expect("writable");
        }),
    ];
    for (expected, make) in cases {
        let home = scratch();
        let path = home.path().join(&name);
        make(&path);
        chmod(&path, 0o600);
        let message = refusal(home.path());
        assert!(message.contains(expected), "{message}");
    }
    let home = scratch();
    fs::write(home.path().join("mine.key"), [1; 32]).expect("writable");
    chmod(&home.path().join("mine.key"), 0o600);
    assert!(refusal(home.path()).contains(&id(1).to_string()));
}

#[test]
fn a_link_or_a_pipe_in_the_place_of_a_key_is_refused_at_once() {
    let home = scratch();
    let real = put(home.path(), 1, 0o600);
    let elsewhere = scratch();
    symlink(&real, elsewhere.path().join(format!("{}.key", id(1)))).expect("writable");
    assert!(refusal(elsewhere.path()).contains("keys import"));

    let piped = scratch();
    let pipe = piped.path().join(format!("{}.key", id(1)));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .expect("a pipe");
    assert!(refusal(piped.path()).contains("32 bytes"));
}

#[test]
fn what_is_not_named_as_a_key_is_left_alone() {
    let home = scratch();
    put(home.path(), 1, 0o600);
    fs::write(home.path().join("README"), "hello").expect("writable");
    fs::create_dir(home.path().join("..2026_11_24")).expect("writable");
    fs::write(home.path().join(".x.key.new"), "torn").expect("writable");
    assert_eq!(Ring::open(home.path()).expect("good").keys().len(), 1);
}

#[test]
fn the_key_that_signs_is_asked_for_then_activated_then_the_one_so_far_then_the_only_one() {
    let home = scratch();
    let choose = |asked, so_far| Ring::open(home.path()).and_then(|r| r.choose(asked, so_far));
    assert!(matches!(choose(None, None), Err(KeyError::Empty(_))));
    put(home.path(), 1, 0o600);
    assert_eq!(choose(None, None).expect("the only one"), id(1));
    put(home.path(), 2, 0o600);
    put(home.path(), 3, 0o600);
    assert!(matches!(
        choose(None, None),
        Err(KeyError::NotChosen { count: 3, .. })
    ));
    assert_eq!(choose(None, Some(id(2))).expect("so far"), id(2));
    Ring::open(home.path())
        .and_then(|ring| ring.activate(id(3)))
        .expect("writable");
    assert_eq!(choose(None, Some(id(2))).expect("activated"), id(3));
    assert_eq!(choose(Some(id(1)), None).expect("asked for"), id(1));
    assert!(matches!(
        choose(Some(id(9)), None),
        Err(KeyError::Unknown { .. })
    ));
    fs::remove_file(home.path().join(format!("{}.key", id(3)))).expect("there");
    assert!(
        choose(None, Some(id(2))).is_err(),
        "a choice that is gone is no other choice"
    );
}

#[test]
fn the_name_of_the_key_that_signs_is_read_whole_or_refused() {
    let home = scratch();
    put(home.path(), 1, 0o600);
    let active = home.path().join("active_key_id");
    let choose = || {
        Ring::open(home.path())
            .and_then(|ring| ring.choose(None, None))
            .map_err(|error| error.to_string())
    };
    let padded = |length: usize| format!("{:length$}", id(1).to_string());
    fs::write(&active, padded(16 << 10)).expect("writable");
    assert_eq!(choose(), Ok(id(1)), "just as long as may be");
    // Cut at the limit it would name the same key: a rest that nobody reads must not pass.
    fs::write(&active, padded((16 << 10) + 1)).expect("writable");
    let refused = choose().expect_err("too long");
    assert!(refused.contains("longer than 16384 bytes"), "{refused}");
    assert!(refused.contains("evidenceos keys activate"), "{refused}");
    fs::remove_file(&active).expect("there");
    fs::create_dir(&active).expect("writable");
    let refused = choose().expect_err("a directory");
    assert!(refused.contains("not a regular file"), "{refused}");
    assert!(refused.contains("evidenceos keys activate"), "{refused}");
}

#[test]
fn a_read_only_ring_works() {
    let home = scratch();
    put(home.path(), 1, 0o400);
    chmod(home.path(), 0o500);
    let ring = Ring::open(home.path()).expect("good");
    assert_eq!(ring.choose(None, None).expect("the only one"), id(1));
    ring.seed(id(1)).expect("readable");
}

/// The layout of a mounted Secret: names are links through `..data` to a dated directory.
fn mounted(mode: u32) -> TempDir {
    let mount = scratch();
    let dated = mount.path().join("..2026_11_24_03_09_33.1");
    fs::create_dir(&dated).expect("writable");
    for byte in [1, 2] {
        let path = put(&dated, byte, mode);
        let name = path.file_name().expect("a name");
        symlink(Path::new("..data").join(name), mount.path().join(name)).expect("writable");
    }
    symlink("..2026_11_24_03_09_33.1", mount.path().join("..data")).expect("writable");
    mount
}

#[test]
fn a_mounted_secret_is_imported_any_number_of_times() {
    let (mount, home) = (mounted(0o440), scratch());
    fs::write(mount.path().join("holdouts.secret"), [5; 32]).expect("writable");
    chmod(&mount.path().join("holdouts.secret"), 0o440);
    let keys = home.path().join("keys");
    let first = import(mount.path(), &keys).expect("a good mount");
    assert_eq!((first.added.len(), first.kept.len()), (2, 0));
    assert_eq!(first.secrets, ["holdouts.secret"]);
    let second = import(mount.path(), &keys).expect("again");
    assert_eq!((second.added.len(), second.kept.len()), (0, 2));
    let ring = Ring::open(&keys).expect("good");
    assert_eq!(ring.keys().keys().copied().collect::<Vec<_>>(), {
        let mut ids = vec![id(1), id(2)];
        ids.sort_unstable();
        ids
    });
    assert_eq!(mode(&keys), 0o700);
    for id in ring.keys().keys() {
        assert_eq!(mode(&ring.file_of(*id)), 0o600);
    }
}

#[test]
fn a_mount_that_everybody_can_read_is_refused_and_nothing_is_written() {
    for world in [0o444, 0o404, 0o442] {
        let (mount, home) = (mounted(world), scratch());
        let keys = home.path().join("keys");
        let message = import(mount.path(), &keys)
            .expect_err("open to everybody")
            .to_string();
        assert!(message.contains("defaultMode"), "{message}");
        assert!(!keys.exists());
    }
}

#[test]
fn a_link_out_of_the_mount_is_not_followed() {
    let (mount, home, elsewhere) = (scratch(), scratch(), scratch());
    let outside = put(elsewhere.path(), 1, 0o400);
    symlink(
        &outside,
        mount.path().join(outside.file_name().expect("a name")),
    )
    .expect("writable");
    let keys = home.path().join("keys");
    assert!(matches!(
        import(mount.path(), &keys),
        Err(KeyError::LeadsOut(_))
    ));
    assert!(!keys.exists());
}

/// systemd.exec(5), LoadCredential: the files of a directory are `ID_` and their own names.
#[test]
fn credentials_of_systemd_are_imported_under_their_own_names() {
    let (mount, home) = (scratch(), scratch());
    let key = put(mount.path(), 1, 0o440);
    let name = key.file_name().expect("a name").to_str().expect("text");
    fs::rename(&key, mount.path().join(format!("keys_{name}"))).expect("renamed");
    let secret = mount.path().join("my_keys_owners.secret");
    fs::write(&secret, [5; 32]).expect("writable");
    chmod(&secret, 0o440);
    let keys = home.path().join("keys");
    let imported = import(mount.path(), &keys).expect("good");
    assert_eq!(imported.added, [id(1)]);
    assert_eq!(imported.secrets, ["owners.secret"]);
    assert!(keys.join(name).exists());
}

#[test]
fn secrets_come_alone_where_a_kms_has_the_key() {
    let (mount, home) = (scratch(), scratch());
    let secret = mount.path().join("holdouts.secret");
    fs::write(&secret, [5; 32]).expect("writable");
    chmod(&secret, 0o440);
    let keys = home.path().join("keys");
    let imported = import(mount.path(), &keys).expect("good");
    assert_eq!(imported.secrets, ["holdouts.secret"]);
    assert_eq!(mode(&keys.join("holdouts.secret")), 0o600);
}

#[test]
fn an_import_without_keys_or_with_another_secret_says_so() {
    let (mount, home) = (scratch(), scratch());
    let keys = home.path().join("keys");
    assert!(matches!(
        import(mount.path(), &keys),
        Err(KeyError::Empty(_))
    ));
    put(mount.path(), 1, 0o440);
    fs::write(mount.path().join("owners.secret"), [1; 32]).expect("writable");
    chmod(&mount.path().join("owners.secret"), 0o400);
    import(mount.path(), &keys).expect("good");
    chmod(&mount.path().join("owners.secret"), 0o600);
    fs::write(mount.path().join("owners.secret"), [2; 32]).expect("writable");
    assert!(matches!(
        import(mount.path(), &keys),
        Err(KeyError::Differs(_))
    ));
}

#[test]
fn fixed_permissions_open_the_ring_again() {
    let home = scratch();
    put(home.path(), 1, 0o660);
    put(home.path(), 2, 0o600);
    chmod(home.path(), 0o2770);
    assert!(Ring::open(home.path()).is_err());
    let changed = Directory::fix_permissions(home.path()).expect("ours");
    assert_eq!(changed.len(), 2);
    assert_eq!(Ring::open(home.path()).expect("closed").keys().len(), 2);
    assert!(
        Directory::fix_permissions(home.path())
            .expect("ours")
            .is_empty()
    );
}

#[test]
fn a_secret_is_made_once_and_found_in_the_key_directory_too() {
    let home = scratch();
    let own = secrets::directory(home.path()).expect("writable");
    assert!(matches!(
        secrets::open(None, &own, secrets::OWNERS, false),
        Err(KeyError::Missing(_))
    ));
    let made = secrets::open(None, &own, secrets::OWNERS, true).expect("first start");
    let found = secrets::open(None, &own, secrets::OWNERS, false).expect("made before");
    assert_eq!(made, found);
    assert_eq!(mode(&home.path().join("secrets")), 0o700);

    let keys = home.path().join("keys");
    let imported = Directory::open_or_create(&keys).expect("writable");
    imported.write(secrets::OWNERS, &seed(9)).expect("writable");
    let found = secrets::open(Some(&imported), &own, secrets::OWNERS, false);
    assert_eq!(found.expect("imported"), seed(9));
}

#[test]
fn no_message_shows_a_seed() {
    let home = scratch();
    let path = put(home.path(), 1, 0o600);
    fs::rename(&path, home.path().join("wrong.key")).expect("there");
    let shown = hex::encode([1; 32]);
    assert!(!refusal(home.path()).contains(&shown));
    let ring = format!("{:?}", Ring::open_or_create(&home.path().join("new")));
    assert!(!ring.contains(&shown));
}
