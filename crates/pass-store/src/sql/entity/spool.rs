//! Spools, by id.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "spool")]
pub(crate) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) spool_id: Vec<u8>,
    pub(crate) gateway: String,
    pub(crate) generation: i64,
    pub(crate) committed_sequence: i64,
    pub(crate) missing: String,
    /// The log's epoch when the spool's place was last in order; 0 if an older release wrote it.
    pub(crate) epoch: i64,
    /// The sequence of the delivery below; if it is not the committed one, which that is is not known.
    pub(crate) delivery_sequence: i64,
    /// The last delivery; empty if there was none or an older release wrote it.
    pub(crate) delivery_id: Vec<u8>,
    /// How far the spool has to refill a database that went back in time; 0 if it has not to.
    pub(crate) refill_sequence: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(crate) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
