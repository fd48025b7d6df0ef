//! Waiting for something to become true.

use std::fmt::Display;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

/// How often [`wait_for`] looks.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Asks `probe` every 20 ms until it gives a value, for at most `limit`.
///
/// `probe` says how things stand by its error; the last one is in the error of a wait that was in vain.
///
/// # Errors
/// If `limit` passes; also when one probe alone takes that long.
pub async fn wait_for<T, S: Display>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, S>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(deadline, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(state)) => last = Some(state),
            Err(_) => {}
        }
        if Instant::now() >= deadline {
            match last {
                Some(state) => bail!("waited {limit:?} for {what}; at last: {state}"),
                None => bail!("waited {limit:?} for {what}; the first look at it did not end"),
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_with_the_value() {
        let mut looks = 0;
        let value = wait_for("three looks", Duration::from_secs(5), async || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(looks) }
        })
        .await
        .unwrap();
        assert_eq!(value, 3);
    }

    #[tokio::test]
    async fn a_wait_in_vain_tells_the_last_state() {
        let error = wait_for("a miracle", Duration::from_millis(50), async || {
            Err::<(), _>("still water")
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("a miracle") && error.contains("still water"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_look_that_never_ends_does_not_outlive_the_limit() {
        let pending = wait_for("nothing", Duration::from_millis(50), async || {
            std::future::pending::<Result<(), &str>>().await
        });
        let ended = tokio::time::timeout(Duration::from_secs(5), pending).await;
        assert!(ended.unwrap().is_err());
    }
}
