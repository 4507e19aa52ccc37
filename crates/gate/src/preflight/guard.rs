//! Commands that destroy a machine or a home, whatever their purpose: the gate denies them without any policy module.
//!
//! This is a safety net for an honest agent's mistakes, not a security boundary: a program's name does not tell what
//! it does. A site's own rules belong in policy modules. Pure.

use serde_json::{Map, Value};

/// The name under which a denied call is recorded, as if a policy module with this name had
/// rejected it.
pub const GUARD: &str = "evidenceos.destructive-commands";
/// Its reason code, from the range of policy modules.
pub const GUARD_CODE: u16 = 9_000;

/// The most strings of the parameters that are examined, and the deepest nesting.
const MOST_STRINGS: usize = 256;
const DEEPEST: usize = 8;
/// Words that may precede a command without changing it.
const BEFORE: [&str; 8] = [
    "sudo", "doas", "env", "nohup", "command", "exec", "time", "builtin",
];
/// Directories below the root whose loss destroys the machine or its users' data.
const SYSTEM: [&str; 17] = [
    "bin", "boot", "dev", "etc", "home", "lib", "lib64", "opt", "proc", "root", "run", "sbin",
    "srv", "sys", "users", "usr", "var",
];

/// Whether the parameters of a shell tool contain a destructive command.
#[must_use]
pub fn destroys(params: &Map<String, Value>) -> bool {
    let mut texts = Vec::new();
    for value in params.values() {
        collect(value, 0, &mut texts);
    }
    texts.iter().any(|text| is_destructive(text))
}

/// Collects every string, and every list of strings as one command line.
fn collect(value: &Value, depth: usize, texts: &mut Vec<String>) {
    if depth > DEEPEST || texts.len() >= MOST_STRINGS {
        return;
    }
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(list) => {
            let words: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            texts.extend(words.map(|words| words.join(" ")));
            list.iter()
                .for_each(|value| collect(value, depth + 1, texts));
        }
        Value::Object(fields) => {
            fields
                .values()
                .for_each(|value| collect(value, depth + 1, texts));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_destructive(text: &str) -> bool {
    let dense: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    // A function that calls itself twice: the shell's fork bomb.
    if dense.contains(":(){:|:&};:") {
        return true;
    }
    // Quotes do not change the meaning here: `rm -rf "/"`, `sh -c 'rm -rf /'`.
    let plain: String = text.chars().filter(|c| !"\"'\\`".contains(*c)).collect();
    let commands = plain.split(|c| ";|&\n()".contains(c));
    commands.map(words_of).any(|words| {
        // In `sh -c rm -rf /` the command follows other words.
        (0..words.len()).any(|from| is_destructive_command(&words[from..]))
    })
}

fn words_of(command: &str) -> Vec<String> {
    let words = command.split_whitespace().map(str::to_ascii_lowercase);
    words
        .skip_while(|word| BEFORE.contains(&word.as_str()))
        .collect()
}

fn is_destructive_command(words: &[String]) -> bool {
    let Some((program, arguments)) = words.split_first() else {
        return false;
    };
    // `cat x >/dev/sda` and `cat x > /dev/sda`: the target follows the sign, or is the next word.
    if program.starts_with('>') {
        let target = program.trim_start_matches('>');
        let next = arguments.first().map_or("", String::as_str);
        return is_disk(if target.is_empty() { next } else { target });
    }
    let program = program.rsplit('/').next().unwrap_or(program);
    let has = |wanted: &[&str]| arguments.iter().any(|word| wanted.contains(&word.as_str()));
    let of_all = || arguments.iter().any(|word| is_all(word));
    let flag = |letter: char| {
        let short = |word: &&String| word.starts_with('-') && !word.starts_with("--");
        arguments
            .iter()
            .filter(short)
            .any(|word| word.contains(letter))
    };
    match program {
        "rm" => has(&["--no-preserve-root"]) || ((flag('r') || has(&["--recursive"])) && of_all()),
        "chmod" | "chown" => (flag('r') || has(&["--recursive"])) && of_all(),
        "find" => of_all() && (has(&["-delete"]) || has(&["rm"])),
        "dd" => arguments
            .iter()
            .any(|word| word.strip_prefix("of=").is_some_and(is_disk)),
        "wipefs" | "shred" => arguments.iter().any(|word| is_disk(word)),
        "remove-item" | "ri" | "rd" | "rmdir" | "del" => {
            (has(&["-recurse", "/s", "-r"]))
                && (of_all() || arguments.iter().any(|word| is_drive(word)))
        }
        "format" | "format-volume" => arguments.iter().any(|word| is_drive(word)),
        _ => program == "mkfs" || program.starts_with("mkfs."),
    }
}

/// The root, a home, or a directory of the system, with everything in it.
fn is_all(word: &str) -> bool {
    let word = word.trim_end_matches('*');
    let bare = word.trim_end_matches('/');
    let homes = ["~", "$home", "${home}", "$env:userprofile", "%userprofile%"];
    if homes.contains(&bare) || is_drive(word) {
        return true;
    }
    match word.strip_prefix('/') {
        None => false,
        Some(_) if bare.is_empty() => true,
        Some(_) => SYSTEM.contains(&bare.trim_start_matches('/')),
    }
}

/// `c:`, `c:\` without its backslash, `c:/`.
fn is_drive(word: &str) -> bool {
    let mut letters = word.trim_end_matches(['/', '*']).chars();
    matches!((letters.next(), letters.next(), letters.next()), (Some(letter), Some(':'), None) if letter.is_ascii_alphabetic())
}

fn is_disk(word: &str) -> bool {
    let disks = [
        "sd", "hd", "vd", "xvd", "nvme", "mmcblk", "disk", "mapper/", "md",
    ];
    word.strip_prefix("/dev/")
        .is_some_and(|device| disks.iter().any(|disk| device.starts_with(disk)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn destroyed_by(params: Value) -> bool {
        params.as_object().is_some_and(destroys)
    }

    #[test]
    fn what_destroys_a_machine_is_stopped_however_it_is_written() {
        for command in [
            "rm -rf /",
            "rm -fr /*",
            "rm -r -f ~",
            "rm --recursive --force $HOME/",
            "sudo rm -Rf --no-preserve-root /",
            "/bin/rm -rf \"/\"",
            "cd /tmp && rm -rf /etc",
            "echo hi; rm -rf ${HOME}/*",
            "sh -c 'rm -rf /'",
            "true\nrm -rf /usr/",
            "ls | (rm -rf /home)",
            ":(){ :|:& };:",
            "mkfs.ext4 /dev/sda1",
            "dd if=/dev/zero of=/dev/nvme0n1",
            "cat x > /dev/sda",
            "cat x >/dev/sda",
            "chmod -R 777 /",
            "chown -R me:me /var",
            "find / -name '*' -delete",
            "wipefs -a /dev/sdb",
            "Remove-Item -Recurse -Force C:\\",
            "rd /s /q c:\\",
            "format C:",
        ] {
            assert!(destroyed_by(json!({ "command": command })), "{command}");
        }
        assert!(destroyed_by(json!({ "argv": ["rm", "-rf", "/"] })));
        assert!(destroyed_by(
            json!({ "a": { "b": ["bash", "-c", "rm -rf ~"] } })
        ));
    }

    #[test]
    fn an_honest_agents_work_goes_on() {
        for command in [
            "ls -la /",
            "rm -rf target",
            "rm -rf ./build /tmp/x",
            "rm -rf node_modules && npm install",
            "rm file.txt",
            "rm -f /etc-copy",
            "grep -r rm /usr/include",
            "find . -name '*.pyc' -delete",
            "find /var/log -name x",
            "chmod -R u+w ./dir",
            "dd if=/dev/zero of=disk.img",
            "cargo fmt && git diff",
            "echo x > /dev/null",
            "python -c 'print(1)'",
            "git format-patch HEAD~3",
        ] {
            assert!(!destroyed_by(json!({ "command": command })), "{command}");
        }
        assert!(!destroyed_by(json!({ "command": 7, "x": null })));
    }

    #[test]
    fn parameters_of_any_depth_and_size_are_bounded() {
        let deep = (0..64).fold(json!("rm -rf /"), |value, _| json!([value]));
        assert!(!destroyed_by(json!({ "a": deep })));
        let wide: Vec<Value> = (0..10_000).map(|n| json!({ "n": n.to_string() })).collect();
        assert!(!destroyed_by(json!({ "a": wide })));
    }
}
