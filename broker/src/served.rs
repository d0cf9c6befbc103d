//! Which data planes this broker serves: those of its configuration, and those that are registered.

use outstation_protocol::DataPlane;

use crate::store::{Store, StoreError};

#[derive(Clone)]
pub struct Served {
    configured: Vec<DataPlane>,
    store: Store,
}

impl Served {
    pub fn new(configured: Vec<DataPlane>, store: Store) -> Served {
        Served { configured, store }
    }

    pub fn configured(&self) -> &[DataPlane] {
        &self.configured
    }

    pub async fn contains(&self, data_plane: &DataPlane) -> Result<bool, StoreError> {
        if self.configured.contains(data_plane) {
            return Ok(true);
        }
        Ok(self.store.registration(data_plane.clone()).await?.is_some())
    }
}
