//! Which scope each method requires, as the protos say it (`required_scope` in `access.proto`).
//!
//! Nothing here decides anything; who holds which scope is the server's affair.

use std::collections::BTreeMap;

use prost_reflect::{DescriptorError, DescriptorPool, MethodDescriptor};

pub use crate::v1::Scope;

/// The option's full name.
const OPTION: &str = "passline.v1.required_scope";

/// The scope's name as configuration and errors spell it, such as `read:personal`.
#[must_use]
pub fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Unspecified => "none that can be held",
        Scope::Ingest => "ingest",
        Scope::Read => "read",
        Scope::ReadPersonal => "read:personal",
        Scope::Consume => "consume",
        Scope::Admin => "admin",
    }
}

/// The scopes that a principal can hold.
pub const SCOPES: [Scope; 5] = [
    Scope::Ingest,
    Scope::Read,
    Scope::ReadPersonal,
    Scope::Consume,
    Scope::Admin,
];

/// The scope that each method of a descriptor set requires, by its path, such as
/// `/passline.v1.PassService/GetPass`. One that says nothing requires [`Scope::Unspecified`], which nobody
/// holds.
///
/// # Errors
/// If it is no descriptor set.
pub fn required_scopes(descriptors: &[u8]) -> Result<BTreeMap<String, Scope>, DescriptorError> {
    let pool = DescriptorPool::decode(descriptors)?;
    Ok(pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|method| {
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            (path, required(&pool, &method))
        })
        .collect())
}

fn required(pool: &DescriptorPool, method: &MethodDescriptor) -> Scope {
    let Some(option) = pool.get_extension_by_name(OPTION) else {
        return Scope::Unspecified;
    };
    let options = method.options();
    options
        .get_extension(&option)
        .as_enum_number()
        .and_then(|number| Scope::try_from(number).ok())
        .unwrap_or(Scope::Unspecified)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_method_says_which_scope_it_requires() {
        let scopes = required_scopes(crate::DESCRIPTORS).unwrap();
        let table: String = scopes
            .iter()
            .map(|(path, scope)| format!("{path} {}\n", scope_name(*scope)))
            .collect();
        assert_eq!(table, TABLE);
        // Read without the option, too: nothing was left out.
        let set = FileDescriptorSet::decode(crate::DESCRIPTORS).unwrap();
        let methods = set.file.iter().flat_map(|file| &file.service);
        assert_eq!(
            scopes.len(),
            methods.map(|service| service.method.len()).sum::<usize>()
        );
        assert!(scopes.values().all(|scope| SCOPES.contains(scope)));
    }

    #[test]
    fn a_method_that_says_nothing_requires_what_nobody_holds() {
        // Prost's types know no options of ours, so this loses them.
        let set = FileDescriptorSet::decode(crate::DESCRIPTORS).unwrap();
        let scopes = required_scopes(&set.encode_to_vec()).unwrap();
        assert!(!scopes.is_empty());
        assert!(scopes.values().all(|scope| *scope == Scope::Unspecified));
        assert!(!SCOPES.contains(&Scope::Unspecified));
    }

    const TABLE: &str = "\
/passline.v1.DeliveryService/DiscardDelivery admin
/passline.v1.DeliveryService/GetDelivery read
/passline.v1.DeliveryService/ListDeliveries read
/passline.v1.DeliveryService/ReplayDelivery admin
/passline.v1.IngestService/Ingest ingest
/passline.v1.PassService/BatchGetPasses read
/passline.v1.PassService/GetEvent read
/passline.v1.PassService/GetLogInfo read
/passline.v1.PassService/GetPass read
/passline.v1.PassService/ListEvents read
/passline.v1.PassService/ListPasses read
/passline.v1.PassService/LookupPasses read
/passline.v1.SubscriptionService/Subscribe consume
";
}
