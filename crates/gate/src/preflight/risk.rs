//! The tools that can do harm, however their names are spelt. Pure.
//!
//! A name is compared by its letters and digits alone, in lower case: `EXEC`, `exec ` and
//! `Shell_Exec` are on the list if `exec` and `shell.exec` are. A name with any other kind of
//! character might mean any tool to the program that makes the call, so it counts as harmful.

use std::collections::BTreeSet;

/// Tools whose parameters are a command, in the compared form of their names: the published ones, and those of
/// agents.
const SHELLS: [&str; 9] = [
    "exec",
    "shellexec",
    "bash",
    "sh",
    "shell",
    "powershell",
    "execcommand",
    "runcommand",
    "terminal",
];

/// The tools that can do harm, and whether others are allowed if nothing can be decided.
#[derive(Debug, Clone)]
pub struct Risk {
    high: BTreeSet<String>,
    fail_open_for_low: bool,
    /// Whether a throttled shell gets an empty command instead of a denial.
    rewrites_shells: bool,
}

impl Risk {
    /// A list of tools that can do harm.
    pub fn new<N: AsRef<str>>(
        high: impl IntoIterator<Item = N>,
        fail_open_for_low: bool,
        rewrites_shells: bool,
    ) -> Self {
        let high = high.into_iter().map(|name| bare(name.as_ref())).collect();
        Self {
            high,
            fail_open_for_low,
            rewrites_shells,
        }
    }

    /// Whether a tool can do harm.
    pub fn is_high(&self, tool: &str) -> bool {
        let bare = bare(tool);
        // A name of dots and blanks leaves nothing to compare, so it counts as harmful.
        !is_plain(tool) || bare.is_empty() || self.high.contains(&bare)
    }

    /// Whether a call of a tool goes on if nothing can be decided. If policies are in force, none
    /// does, since they cover every tool.
    pub fn lets_through(&self, tool: &str, has_policies: bool) -> bool {
        self.fail_open_for_low && !has_policies && !self.is_high(tool)
    }

    /// Whether a tool runs a command, and gets another one if it is throttled.
    pub(super) fn is_rewritten(&self, tool: &str) -> bool {
        self.rewrites_shells && self.is_shell(tool)
    }

    /// Whether a tool runs a command.
    pub(super) fn is_shell(&self, tool: &str) -> bool {
        // An unusual name might mean any tool to the program that makes the call: no parameters are
        // harmless for it.
        is_plain(tool) && SHELLS.contains(&bare(tool).as_str())
    }
}

/// The letters and digits of a name, in lower case.
fn bare(name: &str) -> String {
    let kept = name.chars().filter(char::is_ascii_alphanumeric);
    kept.map(|letter| letter.to_ascii_lowercase()).collect()
}

/// Whether a name has only the usual characters of tools' names.
fn is_plain(name: &str) -> bool {
    name.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b" ._-/:".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn risk(fail_open_for_low: bool) -> Risk {
        Risk::new(
            ["exec", "Shell.Exec", "fs.delete_tree"],
            fail_open_for_low,
            true,
        )
    }

    #[test]
    fn a_name_that_is_written_otherwise_is_the_same_tool() {
        for name in [
            "exec",
            "EXEC",
            "eXeC",
            "exec ",
            " exec",
            "  EXEC  ",
            "e x e c",
            "exec.",
            "./exec",
            "shell.exec",
            "shell_exec",
            "shell-exec",
            "shell/exec",
            "shell:exec",
            "shell exec",
            "ShellExec",
            "SHELL . EXEC",
            "fs.delete_tree",
            "fs-delete-tree",
            "FsDeleteTree",
        ] {
            assert!(risk(true).is_high(name), "{name:?}");
            assert!(!risk(true).lets_through(name, false), "{name:?}");
        }
    }

    #[test]
    fn a_name_that_no_plain_tool_has_can_do_harm() {
        for name in [
            "\"exec\"",
            "exec()",
            "%65xec",
            "exec;",
            "exec\\",
            "&#101;xec",
            "$exec",
            "exec?",
            "search,web",
            "\u{ff45}\u{ff58}\u{ff45}\u{ff43}",
            "\u{435}xec",
            "ex\u{200b}ec",
            "ex\u{301}ec",
            "exec\u{0}",
            "exec\n",
            "exec\u{7f}",
            "exec\u{a0}",
            "...",
            " ",
            "",
        ] {
            assert!(risk(true).is_high(name), "{name:?}");
        }
    }

    #[test]
    fn other_plain_names_do_no_harm_as_published() {
        for name in [
            "search.web",
            "Google Search",
            "executive_summary",
            "fs.read",
            "mcp/notes:list",
            "a",
        ] {
            assert!(!risk(true).is_high(name), "{name:?}");
            assert!(risk(true).lets_through(name, false), "{name:?}");
        }
    }

    #[test]
    fn nothing_undecided_goes_on_under_a_policy_or_if_that_is_not_wanted() {
        assert!(!risk(true).lets_through("search.web", true));
        assert!(!risk(false).lets_through("search.web", false));
    }

    #[test]
    fn a_shell_is_known_by_any_spelling() {
        for (name, is_shell) in [
            ("exec", true),
            ("Shell_Exec ", true),
            ("exec()", false),
            ("fs.write", false),
            ("Bash", true),
            ("PowerShell", true),
            ("exec_command", true),
            ("bashful", false),
        ] {
            assert_eq!(risk(true).is_shell(name), is_shell, "{name:?}");
        }
    }
}
