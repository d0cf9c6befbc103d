//! What reflection tells of us: the transform service and health, not the rest of the API.

use outstation_api::DESCRIPTORS;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use tonic_reflection::server::{Builder, Error};

pub fn service() -> Result<ServerReflectionServer<impl ServerReflection>, Error> {
    let mut ours = FileDescriptorSet::decode(DESCRIPTORS)?;
    ours.file.retain(|file| file.package() == "outstation.transform.v1");
    Builder::configure()
        .register_file_descriptor_set(ours)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
}
