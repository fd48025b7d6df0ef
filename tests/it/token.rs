//! Bearer tokens as an operator makes them.

use crate::programs;

/// A token and the hash that stands for it in the principals file.
pub(crate) struct Token {
    pub(crate) token: String,
    pub(crate) hash: String,
}

impl Token {
    /// By the command that operators use.
    pub(crate) async fn new() -> Self {
        let mut command = tokio::process::Command::new(programs().state);
        let output = command.arg("token").output().await.unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let (token, line) = text.trim_end().split_once('\n').unwrap();
        let hash = line.strip_prefix("token_sha256 = ").unwrap();
        Self {
            token: token.to_owned(),
            hash: hash.trim_matches(['[', ']', '"']).to_owned(),
        }
    }
}
