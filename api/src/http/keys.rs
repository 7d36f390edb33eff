//! API keys: how they are made, and the one that exists from the start.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use callboard_runtime::{
    core::Core,
    id::KeyId,
    store::{
        StoreError,
        api_keys::{self, NewApiKey},
    },
};

use super::auth;

/// The name of the key that exists from the start.
const ADMIN: &str = "admin";

/// Makes sure that `secret` is a key with all scopes, named `admin`. Repeating it changes nothing. A key that was
/// revoked stays revoked.
///
/// # Errors
/// When the store does not answer.
pub async fn ensure_admin_key(core: &Core, secret: &str) -> Result<(), StoreError> {
    let hash = auth::hash(secret);
    if api_keys::find_by_hash(&core.db, &hash).await?.is_some() {
        return Ok(());
    }
    let key = NewApiKey {
        id: KeyId::new(),
        name: ADMIN.to_owned(),
        hash: hash.to_vec(),
        scopes: vec!["*".to_owned()],
        expires_at: None,
    };
    match api_keys::insert(&core.db, &key).await {
        // Another host was faster, or it is revoked.
        Err(StoreError::Conflict(_)) => Ok(()),
        other => other.map(drop),
    }
}

/// What secrets that are made here begin with.
pub(super) const PREFIX: &str = "cb_";

/// A fresh secret: `cb_` and 32 random bytes as base64url without padding.
pub fn generate() -> String {
    format!(
        "{PREFIX}{}",
        URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_recognisable_long_and_new_each_time() {
        let (one, other) = (generate(), generate());
        assert!(one.starts_with("cb_"), "{one}");
        assert_eq!(one.len(), 3 + 43);
        assert_ne!(one, other);
    }
}
