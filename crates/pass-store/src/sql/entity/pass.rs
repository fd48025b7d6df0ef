//! Passes, by number.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "pass")]
pub(crate) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) number: i64,
    pub(crate) source: String,
    pub(crate) vendor_pass_id: String,
    pub(crate) vendor: String,
    pub(crate) organization: String,
    pub(crate) serial_number: Option<Vec<u8>>,
    pub(crate) external_id: Option<Vec<u8>>,
    pub(crate) last_position: i64,
    pub(crate) last_digest: i64,
    pub(crate) digest: i64,
    pub(crate) body: Vec<u8>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(crate) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
