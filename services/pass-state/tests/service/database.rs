//! A database that several services of a test use together.

use std::sync::Arc;

use pass_state::Config;
use pass_state::config::Backend;
use service_kit::config::SecretSource;
use test_kit::TestPostgres;

/// Clones are the same database; it ends with the last.
#[derive(Clone)]
pub(crate) enum Database {
    Sqlite(Arc<tempfile::TempDir>),
    Postgres(String),
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(Arc::new(tempfile::tempdir().unwrap()))
    }

    pub(crate) async fn postgres(server: &TestPostgres) -> Self {
        Self::Postgres(server.database().await.unwrap())
    }

    /// Has a service use it.
    pub(crate) fn configure(&self, config: &mut Config) {
        match self {
            Self::Sqlite(dir) => config.store.path = Some(dir.path().join("shared.db")),
            Self::Postgres(url) => {
                config.store.backend = Backend::Postgres;
                config.store.postgres.url = Some(SecretSource::value(url.as_str()));
            }
        }
    }

    pub(crate) fn config(&self) -> Config {
        let mut config = Config::default();
        self.configure(&mut config);
        config
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgresql",
        }
    }
}

/// Makes a test of a function that takes a [`Database`], on SQLite and on PostgreSQL.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(crate::database::Database::sqlite()).await;
                }
            )+
        }
        mod postgres {
            $(
                #[tokio::test]
                async fn $name() {
                    let server = test_kit::TestPostgres::start().await.unwrap();
                    super::$name(crate::database::Database::postgres(&server).await).await;
                }
            )+
        }
    };
}

pub(crate) use on_both;
