import { mount } from 'svelte';
import '../shared/theme.css';
import { startTheme } from '../shared/theme';
import Chat from './Chat.svelte';

startTheme();
mount(Chat, { target: document.getElementById('app')! });
