//! A real S3 server that others wrote: what holds against ours has to hold against it.

use crate::common::garage::Garage;

#[test]
fn the_fixture_serves_a_bucket_to_a_client_that_is_not_ours() {
    let garage = Garage::start();
    let account = garage.account();
    account.put("some/key", b"bytes");
    assert_eq!(account.get("some/key").as_deref(), Some(&b"bytes"[..]));
    assert_eq!(account.get("no/such/key"), None);
}
