import { mount } from 'svelte';
import '../shared/theme.css';
import { startTheme } from '../shared/theme';
import Dashboard from './Dashboard.svelte';

startTheme();
mount(Dashboard, { target: document.getElementById('app')! });
