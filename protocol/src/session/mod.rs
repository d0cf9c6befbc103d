//! Both ends of the control link as state machines.
