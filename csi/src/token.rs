//! Paging tokens: where a listing goes on, opaque to the caller (CSI ListVolumes and ListSnapshots).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use provisioners::{Error, Result};
use sha2::{Digest as _, Sha256};

const CHECK: usize = 6;

/// A token for the position `after` in the listing `list`.
pub fn encode(list: &str, after: &str) -> String {
    let mut bytes = check(list, after.as_bytes()).to_vec();
    bytes.extend_from_slice(after.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The position that a token stands for; an empty token is the start. A token that was not made by [`encode`] for
/// the same listing: [`Error::BadToken`].
pub fn decode(list: &str, token: &str) -> Result<Option<String>> {
    if token.is_empty() {
        return Ok(None);
    }
    let bad = || Error::BadToken("this token was not given by this listing".into());
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    let (sum, after) = bytes.split_at_checked(CHECK).ok_or_else(bad)?;
    if sum != check(list, after) {
        return Err(bad());
    }
    String::from_utf8(after.to_vec()).map(Some).map_err(|_| bad())
}

fn check(list: &str, after: &[u8]) -> [u8; CHECK] {
    let digest = Sha256::new().chain_update(list).chain_update([0]).chain_update(after).finalize();
    let mut sum = [0; CHECK];
    sum.copy_from_slice(&digest[..CHECK]);
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_leads_back_to_its_position(list in "[a-z.]{0,20}", after in ".{0,128}") {
            prop_assert_eq!(decode(&list, &encode(&list, &after)).unwrap(), Some(after));
        }

        #[test]
        fn any_other_text_is_refused(token in ".{1,60}") {
            prop_assert_eq!(decode("volumes", &token).unwrap_err().label(), "bad_token");
        }
    }

    #[test]
    fn a_token_of_another_listing_is_refused() {
        assert!(decode("snapshots", &encode("volumes", "default:a")).is_err());
    }

    #[test]
    fn no_token_is_the_start() {
        assert_eq!(decode("volumes", "").unwrap(), None);
    }
}
