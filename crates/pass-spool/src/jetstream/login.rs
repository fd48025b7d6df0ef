//! What a connection shows to be let in.

use async_nats::Auth;
use nkeys::KeyPair;

use super::options::{NatsCredentials, NatsLogin};

/// Reads the credentials and answers the server's nonce with them; the error repeats no secret.
pub(super) fn answer(login: &NatsLogin, nonce: &[u8]) -> Result<Auth, String> {
    let mut auth = Auth::new();
    match login.read()? {
        NatsCredentials::None => {}
        NatsCredentials::UserPassword { user, password } => {
            auth.username = Some(user);
            auth.password = Some(password);
        }
        NatsCredentials::Token(token) => auth.token = Some(token),
        NatsCredentials::Creds(text) => {
            let (jwt, seed) = parts(&text)
                .ok_or("credentials are no NATS credentials file: it has no JWT with its seed")?;
            auth.jwt = Some(jwt.to_owned());
            auth.signature = Some(sign(seed, nonce)?.1);
        }
        NatsCredentials::NkeySeed(seed) => {
            let (key, signature) = sign(seed.trim(), nonce)?;
            auth.nkey = Some(key);
            auth.signature = Some(signature);
        }
    }
    Ok(auth)
}

/// The public key of a seed, and its signature.
fn sign(seed: &str, nonce: &[u8]) -> Result<(String, Vec<u8>), String> {
    let unfit = |_| "the login's NKey seed is none".to_owned();
    let pair = KeyPair::from_seed(seed).map_err(unfit)?;
    let signature = pair.sign(nonce).map_err(unfit)?;
    Ok((pair.public_key(), signature))
}

/// The JWT and the seed of a credentials file: the first two lines of their kind that stand below a line of dashes.
fn parts(text: &str) -> Option<(&str, &str)> {
    let mut below_dashes = false;
    let mut found = text.lines().map(str::trim).filter(|line| {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=".contains(&byte);
        let dashes = line.starts_with("---");
        let value = below_dashes && !dashes && !line.is_empty() && line.bytes().all(is_word);
        below_dashes = dashes;
        value
    });
    Some((found.next()?, found.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_file_gives_its_jwt_and_signs_the_nonce() {
        let user = KeyPair::new_user();
        let seed = user.seed().expect("seed");
        let file = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.eyJq-_.c2ln\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n\
             -----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\n"
        );
        let login = NatsLogin::from(NatsCredentials::Creds(file));
        let auth = answer(&login, b"nonce").expect("answer");
        assert_eq!(auth.jwt.as_deref(), Some("eyJ0.eyJq-_.c2ln"));
        let signature = auth.signature.expect("signature");
        user.verify(b"nonce", &signature).expect("ours");
    }

    #[test]
    fn what_is_no_login_is_named_without_its_secret() {
        for credentials in [
            NatsCredentials::Creds("canary".into()),
            NatsCredentials::Creds("-----\ncanary\n-----\n".into()),
            NatsCredentials::Creds("-----\na.b.c\n-----\n-----\ncanary\n-----\n".into()),
            NatsCredentials::NkeySeed("canary".into()),
        ] {
            let error = answer(&credentials.into(), b"").err().expect("no login");
            assert!(!error.contains("canary"), "{error}");
        }
    }
}
